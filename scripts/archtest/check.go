package archtest

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// maxTextBytes bounds what is read of a file that is not Go: beyond it a file is data, not prose.
const maxTextBytes = 1 << 20

// source is one parsed Go file.
type source struct {
	path      string // slash-separated, relative to the module
	pkg       string // folder, relative to the module
	name      string // package clause
	test      bool
	generated bool
	lines     int
	doc       string
	imports   []string
}

// check returns what is wrong with the tree, one sentence per finding, sorted. module is the module's path in go.mod.
// An error is one of reading or parsing the tree, not a finding.
func check(tree fs.FS, module string, rules []rule, longFiles map[string]string) ([]string, error) {
	files, findings, err := load(tree)
	if err != nil {
		return nil, err
	}
	packages := map[string][]source{}
	for _, f := range files {
		findings = append(findings, checkImports(f, module, rules)...)
		findings = append(findings, checkLength(f, longFiles)...)
		packages[f.pkg] = append(packages[f.pkg], f)
	}
	for pkg, sources := range packages {
		findings = append(findings, checkPackage(pkg, sources)...)
	}
	for name := range longFiles {
		if !slices.ContainsFunc(files, func(f source) bool { return f.path == name && f.lines > maxLines }) {
			findings = append(findings, fmt.Sprintf("%s: listed as a long file, but it is not one", name))
		}
	}
	slices.Sort(findings)
	return findings, nil
}

// load parses every Go file of the tree and looks through all text for what must not be in it. Folders that hold no source of
// this module are left out: hidden ones, build output, dependencies, and modules of their own.
func load(tree fs.FS) (files []source, findings []string, err error) {
	err = fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			base := path.Base(name)
			if name != "." && (strings.HasPrefix(base, ".") && base != ".ci" || base == "bin" || base == "node_modules" || base == "testdata" || base == "dist") {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		isGo := strings.HasSuffix(name, ".go")
		if !isGo && info.Size() > maxTextBytes {
			return nil
		}
		text, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		if bytes.IndexByte(text, 0) < 0 {
			findings = append(findings, checkText(name, text)...)
		}
		if !isGo {
			return nil
		}
		f, err := parse(name, text)
		if err != nil {
			return err
		}
		clock, err := checkClock(name, text, wallClock)
		if err != nil {
			return err
		}
		findings = append(findings, clock...)
		files = append(files, f)
		return nil
	})
	return files, findings, err
}

func parse(name string, text []byte) (source, error) {
	parsed, err := parser.ParseFile(token.NewFileSet(), name, text, parser.ImportsOnly|parser.ParseComments)
	if err != nil {
		return source{}, fmt.Errorf("parse: %w", err)
	}
	f := source{
		path: name, pkg: path.Dir(name), name: parsed.Name.Name,
		test:      strings.HasSuffix(name, "_test.go"),
		generated: ast.IsGenerated(parsed),
		lines:     bytes.Count(text, []byte("\n")),
		doc:       parsed.Doc.Text(),
	}
	for _, spec := range parsed.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return source{}, fmt.Errorf("%s: import %s: %w", name, spec.Path.Value, err)
		}
		f.imports = append(f.imports, p)
	}
	return f, nil
}

func checkImports(f source, module string, rules []rule) []string {
	r, ok := ruleFor(f.pkg, rules)
	if !ok {
		return []string{fmt.Sprintf("%s: package %s has no rule: say in scripts/archtest/rules.go where it belongs", f.path, f.pkg)}
	}
	var findings []string
	for _, imported := range f.imports {
		inner, ours := strings.CutPrefix(imported, module+"/")
		switch {
		case ours && f.test && !testMay(f.pkg, inner):
			findings = append(findings, fmt.Sprintf("%s: a test in %s must not import %s: imports point down", f.path, f.pkg, inner))
		case ours && !f.test && !mayImport(r, inner):
			findings = append(findings, fmt.Sprintf("%s: %s must not import %s (rule %q)", f.path, f.pkg, inner, r.Package))
		case !ours && !f.test && slices.ContainsFunc(r.Not, func(not string) bool { return under(imported, not) }):
			findings = append(findings, fmt.Sprintf("%s: %s must not know %s (rule %q)", f.path, f.pkg, imported, r.Package))
		}
	}
	return findings
}

// ruleFor finds the rule of a package: an exact one, else the longest folder above it.
func ruleFor(pkg string, rules []rule) (rule, bool) {
	var best rule
	found := false
	for _, r := range rules {
		if r.Package == pkg {
			return r, true
		}
		if matches(r.Package, pkg) && (!found || len(r.Package) > len(best.Package)) {
			best, found = r, true
		}
	}
	return best, found
}

func mayImport(r rule, inner string) bool {
	return slices.ContainsFunc(r.May, func(may string) bool { return matches(may, inner) })
}

// testMay is the rule for test files: the own top folder, or one on a lower layer. A test that needs two folders of one
// layer belongs above both.
func testMay(pkg, inner string) bool {
	from, to := topFolder(pkg), topFolder(inner)
	if from == to {
		return true
	}
	low, known := layers[to]
	return known && low < layers[from]
}

func checkLength(f source, longFiles map[string]string) []string {
	if f.test || f.generated || f.lines <= maxLines {
		return nil
	}
	if reason, listed := longFiles[f.path]; listed && reason != "" {
		return nil
	}
	return []string{fmt.Sprintf("%s: %d lines, more than %d: is there a second idea in it? (or list it with a reason)", f.path, f.lines, maxLines)}
}

// checkPackage wants one package comment in the product's files of a folder, in the usual form, and a name with a meaning.
func checkPackage(pkg string, sources []source) []string {
	var commented []string
	name, doc := "", ""
	for _, f := range sources {
		if f.test {
			continue
		}
		name = f.name
		if f.doc != "" && !f.generated {
			commented, doc = append(commented, f.path), f.doc
		}
	}
	if name == "" { // only tests here
		return nil
	}
	var findings []string
	if vagueNames[name] || vagueNames[path.Base(pkg)] {
		findings = append(findings, fmt.Sprintf("%s: package %s: a name that answers no question", pkg, name))
	}
	onlyGenerated := !slices.ContainsFunc(sources, func(f source) bool { return !f.generated && !f.test })
	switch {
	case onlyGenerated:
	case len(commented) != 1:
		findings = append(findings, fmt.Sprintf("%s: %d files have a package comment, want exactly one %v", pkg, len(commented), commented))
	case name == "main" && !strings.HasPrefix(doc, "Command "):
		findings = append(findings, fmt.Sprintf("%s: the comment of a program begins \"Command …\"", commented[0]))
	case name != "main" && !strings.HasPrefix(doc, "Package "+name):
		findings = append(findings, fmt.Sprintf("%s: the package comment begins \"Package %s …\"", commented[0], name))
	}
	return findings
}

var unfinishedPattern = regexp.MustCompile(`\b(` + strings.Join(unfinished, "|") + `)\b`)

func checkText(name string, text []byte) []string {
	var findings []string
	for i, line := range strings.Split(string(text), "\n") {
		if mark := unfinishedPattern.FindString(line); mark != "" {
			findings = append(findings, fmt.Sprintf("%s:%d: %s: finish it, or file an issue", name, i+1, mark))
		}
		for _, p := range foreignPaths {
			at := strings.Index(line, p)
			// Part of a longer path ($cache/x/…, a URL) is not the machine's path.
			if at >= 0 && (at == 0 || !isPathByte(line[at-1])) {
				findings = append(findings, fmt.Sprintf("%s:%d: path %s… exists on one machine only", name, i+1, p))
			}
		}
	}
	return findings
}

func isPathByte(c byte) bool {
	return c == '.' || c == '_' || c == '-' || c == '}' || c == ')' || c == '~' ||
		'0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// matches reports whether pattern ("x" or "x/...") names pkg.
func matches(pattern, pkg string) bool {
	if folder, ok := strings.CutSuffix(pattern, "/..."); ok {
		return strings.HasPrefix(pkg, folder+"/")
	}
	return pattern == pkg
}

func under(p, prefix string) bool {
	return p == prefix || strings.HasPrefix(p, prefix+"/") || strings.HasPrefix(p, prefix+"-")
}

func topFolder(pkg string) string {
	top, _, _ := strings.Cut(pkg, "/")
	return top
}
