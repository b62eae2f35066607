package scsi

import "sanctuary/blockstore/block"

// preFetch is PRE-FETCH (SBC-3 r36 §5.8): 0 blocks mean those up to the end. Nothing is read ahead: GOOD says that the cache
// did not take the blocks, CONDITION MET would say that it holds them.
func preFetch(r *request) error {
	lba, blocks := extent(&r.CDB)
	_, err := r.span(lba, blocks)
	return err
}

// orWrite is ORWRITE (16) (SBC-3 r36 §5.7): what is stored becomes the bitwise OR of itself and the data.
func orWrite(r *request) error {
	rng, err := r.transferSpan()
	if err != nil {
		return err
	}
	data, err := r.clamp(rng.Bytes())
	if err != nil || len(data) == 0 {
		return err
	}
	rng.Count = block.CountOf(int64(len(data)))
	return r.unit.cfg.Backend.Modify(r.ctx, r.Fence, rng, func(off int64, have []byte) {
		for i, b := range data[off:][:len(have)] {
			have[i] |= b
		}
	})
}
