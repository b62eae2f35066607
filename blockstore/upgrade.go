package blockstore

func upgradeFromBolt(dir string) error { return nil }
