package main

// Job: what VDDK's stand-in reads: per snapshot, and per machine outside of snapshots, which file a disk's
// name means.
// Rule: a folder is complete before it has its name, so that a reader never sees half of one.

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// writeLinks puts symbolic links named like the disks into a folder, beside `vm` (the machine's id) and, when
// the machine's disks are locked, `locked`.
func writeLinks(folder, vm string, locked bool, files map[string]string) error {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	if err := replace(filepath.Join(folder, "vm"), []byte(vm)); err != nil {
		return err
	}
	lock := filepath.Join(folder, "locked")
	if locked {
		if err := replace(lock, nil); err != nil {
			return err
		}
	} else if err := os.Remove(lock); err != nil && !os.IsNotExist(err) {
		return err
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if _, wanted := files[entry.Name()]; !wanted && filepath.Ext(entry.Name()) == ".vmdk" {
			if err := os.Remove(filepath.Join(folder, entry.Name())); err != nil {
				return err
			}
		}
	}
	for name, file := range files {
		link := filepath.Join(folder, name)
		fresh := link + ".new"
		_ = os.Remove(fresh)
		if err := os.Symlink(file, fresh); err != nil {
			return err
		}
		if err := os.Rename(fresh, link); err != nil {
			return err
		}
	}
	return nil
}

func replace(file string, text []byte) error {
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// writeStandIn writes the settings of VDDK's stand-in beside its library.
func writeStandIn(password string, certificate *identity) error {
	if *libdir == "" {
		return nil
	}
	if err := os.MkdirAll(*libdir, 0o700); err != nil {
		return err
	}
	text := fmt.Sprintf("exports=%s\nuser=%s\npassword=%s\nthumbprint=%s\n",
		exports(), *user, password, certificate.sha1)
	for _, d := range doors {
		_, port, err := net.SplitHostPort(d.Address)
		if err != nil {
			return err
		}
		text += fmt.Sprintf("door=%s %s %s %s\n", port, d.SHA1, d.User, d.password)
	}
	return replace(filepath.Join(*libdir, "standin.conf"), []byte(text))
}
