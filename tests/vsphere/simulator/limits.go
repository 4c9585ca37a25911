package main

// Job: figures that a test changes while the simulator runs, and counters that it reads.
// Rule: the flags are where they start.

import (
	"sync"
	"time"
)

type figures struct {
	mu     sync.Mutex
	most   int
	bytes  int64
	byTask map[string]time.Duration
	skew   time.Duration // of the server's clock
}

var limits figures

func (l *figures) areas() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.most > 0 {
		return l.most
	}
	return *maxAreas
}

func (l *figures) span() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bytes > 0 {
		return l.bytes
	}
	return *span
}

func (l *figures) clock() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.skew
}

// taskTime is how long a method's task takes at least.
func (l *figures) taskTime(method string) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if own, ok := l.byTask[method]; ok {
		return own
	}
	return *taskTime
}

func (l *figures) setTaskTime(method string, lasts time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byTask == nil {
		l.byTask = map[string]time.Duration{}
	}
	l.byTask[method] = lasts
}

// counter is a number that only grows.
type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) add() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.n
}

func (c *counter) value() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

var (
	nextSnapshot counter // ids of snapshots
	overlaps     counter // snapshots that were asked for while another one was being removed
)
