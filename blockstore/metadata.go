package blockstore

// Metadata keeps the records of a pool: a sorted map of keys to values with atomic, durable transactions. One Update runs
// at a time, beside any number of Views, each of which sees the state between two Updates.
type Metadata interface {
	// Update runs fn and, if it returns nil, makes its changes durable, all of them or none. An error that is
	// vfs.ErrNoSpace or fn's own means that none was made and the store goes on; after any other it must not be used again.
	Update(fn func(MetadataTx) error) error
	// View runs fn, which must not change anything.
	View(fn func(MetadataTx) error) error
	Close() error
}

// MetadataTx is one transaction. Slices it hands out are valid until the transaction ends and must not be changed;
// slices it is given must not be changed until then.
type MetadataTx interface {
	// Get returns nil if there is no such key.
	Get(key []byte) []byte
	Put(key, value []byte) error
	// Delete of a key that is not there is not an error.
	Delete(key []byte) error
	// Scan calls fn for the keys that begin with prefix, in ascending order. fn must not Put or Delete.
	Scan(prefix []byte, fn func(key, value []byte) error) error
}
