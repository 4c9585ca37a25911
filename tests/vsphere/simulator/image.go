package main

// Job: real contents of disks: frozen copies, hashes per block, what is allocated, what differs.
// Rule: holes stay holes, and nothing is read twice.

import (
	"errors"
	"hash/maphash"
	"io"
	"os"
	"syscall"

	"github.com/vmware/govmomi/vim25/types"
)

// grain is the block size of the simulated tracking, and what a real one uses for disks of usual sizes.
const grain = 64 << 10

var (
	seed = maphash.MakeSeed()
	zero = maphash.Bytes(seed, make([]byte, grain))
)

// mark is what a disk held at one moment.
type mark struct {
	size   int64
	hashes []uint64
}

// freeze copies a running image to a file, and says what it held.
func freeze(from, to string) (mark, error) {
	in, err := os.Open(from)
	if err != nil {
		return mark{}, err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return mark{}, err
	}
	held, err := look(in, out)
	if closed := out.Close(); err == nil {
		err = closed
	}
	return held, err
}

// contents says what an image holds now.
func contents(file string) (mark, error) {
	in, err := os.Open(file)
	if err != nil {
		return mark{}, err
	}
	defer in.Close()
	return look(in, nil)
}

func look(in, out *os.File) (mark, error) {
	stat, err := in.Stat()
	if err != nil {
		return mark{}, err
	}
	held := mark{size: stat.Size(), hashes: make([]uint64, (stat.Size()+grain-1)/grain)}
	for i := range held.hashes {
		held.hashes[i] = zero
	}
	if out != nil {
		if err := out.Truncate(held.size); err != nil {
			return mark{}, err
		}
	}
	// The last block may be short: the rest of the buffer stays zero, so that a disk that grew differs only
	// where data was written.
	block := make([]byte, grain)
	for _, area := range allocated(in, held.size) {
		for at := area.Start; at < area.Start+area.Length; at += grain {
			n, err := in.ReadAt(block, at)
			if err != nil && !errors.Is(err, io.EOF) {
				return mark{}, err
			}
			for i := n; i < grain; i++ {
				block[i] = 0
			}
			hash := maphash.Bytes(seed, block)
			held.hashes[at/grain] = hash
			if out != nil && hash != zero {
				if _, err := out.WriteAt(block[:n], at); err != nil {
					return mark{}, err
				}
			}
		}
	}
	return held, nil
}

// allocated lists the runs of a file that are not holes, rounded to blocks.
func allocated(file *os.File, size int64) (areas []types.DiskChangeExtent) {
	const seekData, seekHole = 3, 4
	for at := int64(0); at < size; {
		data, err := file.Seek(at, seekData)
		if errors.Is(err, syscall.ENXIO) {
			return areas
		}
		if err != nil {
			return []types.DiskChangeExtent{{Start: 0, Length: size}}
		}
		hole, err := file.Seek(data, seekHole)
		if err != nil {
			hole = size
		}
		areas = add(areas, data/grain*grain, (hole+grain-1)/grain*grain, size)
		at = hole
	}
	return areas
}

// changed lists the blocks in which two moments differ.
func changed(before, after mark) (areas []types.DiskChangeExtent) {
	for i, hash := range after.hashes {
		was := zero
		if i < len(before.hashes) {
			was = before.hashes[i]
		}
		if hash != was {
			areas = add(areas, int64(i)*grain, int64(i+1)*grain, after.size)
		}
	}
	return areas
}

// add puts a run behind sorted ones; neighbours become one.
func add(areas []types.DiskChangeExtent, start, end, size int64) []types.DiskChangeExtent {
	if end > size {
		end = size
	}
	if n := len(areas); n > 0 && areas[n-1].Start+areas[n-1].Length >= start {
		areas[n-1].Length = end - areas[n-1].Start
		return areas
	}
	return append(areas, types.DiskChangeExtent{Start: start, Length: end - start})
}
