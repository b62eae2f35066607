package scsi

import "sanctuary/target/reserve"

// ReservationsOf reads the reservations in a state blob.
func ReservationsOf(blob []byte) (reserve.Table, error) {
	s, err := decodeState(blob)
	return s.reservations, err
}

// DecodeAndEncodeState is what FuzzState needs of the codec.
func DecodeAndEncodeState(blob []byte) ([]byte, error) {
	s, err := decodeState(blob)
	if err != nil {
		return nil, err
	}
	return s.encode(), nil
}

// TargetsOf returns how many targets a unit is in, with the one for commands of other nodes.
func TargetsOf(u *Unit) int { return len(u.targets()) }
