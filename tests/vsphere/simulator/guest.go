package main

// Job: a machine's real guest, run by the command of -on-power.
// Rule: `COMMAND on` is the guest: it stays in the foreground, and its end is the guest's end. All other
// words are short, have a deadline, and are only said while the guest runs.

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

const wordTime = 30 * time.Second

type guest struct {
	pid   int
	ended chan struct{}
	stop  bool // ended by an order, not on its own
}

var guests struct {
	sync.Mutex
	running map[*guest]bool
}

func (v *VM) hasGuest() (has bool) {
	v.locked(func() { has = v.guest != nil })
	return has
}

// command prepares a word of the command, with what it needs to know of the machine.
func (v *VM) command(ctx context.Context, word string) (*exec.Cmd, error) {
	var files, kinds, env []string
	var name, id string
	v.locked(func() {
		keys := make([]int, 0, len(v.disks))
		for key := range v.disks {
			keys = append(keys, int(key))
		}
		sort.Ints(keys)
		for _, key := range keys {
			files = append(files, v.disks[int32(key)].file)
			kinds = append(kinds, v.disks[int32(key)].spec.Controller)
		}
		name, id = v.Name, v.Self.Value
		kind, mac := firstCard(v)
		env = []string{
			"VM_NAME=" + name, "VM_ID=" + id, "VM_UUID=" + v.Config.Uuid, "VM_FIRMWARE=" + v.Config.Firmware,
			"VM_MAC=" + mac, "VM_CARD=" + kind, fmt.Sprintf("VM_CPUS=%d", v.Config.Hardware.NumCPU),
			fmt.Sprintf("VM_MEMORY_MB=%d", v.Config.Hardware.MemoryMB),
			"VM_DISKS=" + strings.Join(files, "\n"), "VM_CONTROLLERS=" + strings.Join(kinds, "\n"),
		}
	})
	folder := filepath.Join(*dir, "guests", id)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	said, err := os.OpenFile(filepath.Join(folder, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, *onPower, word, name)
	cmd.Env = append(append(os.Environ(), env...), "VM_DIR="+folder)
	cmd.Stdout, cmd.Stderr = said, said
	return cmd, nil
}

// startGuest starts the guest. The turn is held, the lock is not.
func (v *VM) startGuest() error {
	if *onPower == "" || v.spec.NoGuest {
		return nil
	}
	cmd, err := v.command(context.Background(), "on")
	if err != nil {
		return err
	}
	g := &guest{ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		// A child that dies with its parent dies with the thread that started it: this one waits for its end.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		g.pid = cmd.Process.Pid
		started <- nil
		_ = cmd.Wait()
		_ = syscall.Kill(-g.pid, syscall.SIGKILL)
		close(g.ended)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("%s on %s: %w", *onPower, v.Name, err)
	}
	guests.Lock()
	if guests.running == nil {
		guests.running = map[*guest]bool{}
	}
	guests.running[g] = true
	guests.Unlock()
	v.locked(func() { v.guest = g })
	go v.awaitGuest(g)
	return nil
}

// awaitGuest shows the machine off when its guest ends on its own.
func (v *VM) awaitGuest(g *guest) {
	<-g.ended
	guests.Lock()
	delete(guests.running, g)
	guests.Unlock()
	v.locked(func() {
		if v.guest != g {
			return
		}
		v.guest = nil
		if !g.stop {
			v.setPower(types.VirtualMachinePowerStatePoweredOff)
		}
	})
}

// guestWord says a word to the command. The lock is not held.
func (v *VM) guestWord(word string) error {
	if !v.hasGuest() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), wordTime)
	defer cancel()
	cmd, err := v.command(ctx, word)
	if err != nil {
		return err
	}
	if err := cmd.Run(); err != nil && v.hasGuest() {
		return fmt.Errorf("%s %s %s: %w (its log is in guests/%s)", *onPower, word, v.Name, err, v.Self.Value)
	}
	return nil
}

// endGuest stops the guest hard: by the command's word, then by a signal. The lock is not held.
func (v *VM) endGuest() error {
	var g *guest
	v.locked(func() {
		if g = v.guest; g != nil {
			g.stop = true
		}
	})
	if g == nil {
		return nil
	}
	if err := v.guestWord("off"); err != nil {
		log.Printf("simulator: %s", err)
	}
	select {
	case <-g.ended:
	case <-time.After(2 * time.Second):
		_ = syscall.Kill(-g.pid, syscall.SIGKILL)
	}
	select {
	case <-g.ended:
		return nil
	case <-time.After(wordTime):
		return fmt.Errorf("the guest of %s, process %d, does not end", v.Name, g.pid)
	}
}

// endGuests ends all of them, with the simulator.
func endGuests() {
	guests.Lock()
	defer guests.Unlock()
	for g := range guests.running {
		_ = syscall.Kill(-g.pid, syscall.SIGKILL)
	}
	for g := range guests.running {
		select {
		case <-g.ended:
		case <-time.After(5 * time.Second):
		}
	}
}
