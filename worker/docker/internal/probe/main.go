// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command probe is the agent of this package's tests: it does one thing that
// the environment variable PROBE names, and says what came of it.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/Agent-FM/caddy-agentfm/internal/way"
)

func main() {
	if len(os.Args) == 4 && os.Args[1] == "agentfm" && os.Args[2] == "way" { // as Caddy, in a container beside an agent's
		check(way.Serve(os.Args[3]))
		return
	}
	mode, number, _ := strings.Cut(os.Getenv("PROBE"), " ")
	n, _ := strconv.Atoi(number)
	switch mode {
	case "argument": // the prompt as it came
		for _, arg := range os.Args[1:] {
			fmt.Print(arg)
		}
	case "stdin":
		_, _ = io.Copy(os.Stdout, os.Stdin)
	case "once":
		once()
	case "early": // n MiB, before there is a task
		check(os.WriteFile("/tmp/output/early", make([]byte, n<<20), 0o600))
		once()
	case "pipe":
		pipe(number)
	case "file":
		fmt.Print(read(os.Getenv("AGENTFM_PROMPT")), len(os.Args))
	case "request":
		fmt.Print(read(os.Getenv("AGENTFM_REQUEST")))
	case "streams":
		fmt.Print("out1 ")
		fmt.Fprint(os.Stderr, "err1 ")
		fmt.Print("out2 ")
		fmt.Fprint(os.Stderr, "err2")
	case "exit":
		os.Exit(n)
	case "signal":
		_ = syscall.Kill(os.Getpid(), syscall.Signal(n))
		block()
	case "segfault":
		segfault()
	case "term": // is asked to end, and leaves a word
		asked := make(chan os.Signal, 1)
		signal.Notify(asked, syscall.SIGTERM)
		fmt.Print("waiting")
		<-asked
		check(os.WriteFile(filepath.Join(os.Getenv("AGENTFM_OUTPUT"), "bye"), nil, 0o644))
	case "stubborn": // does not end
		signal.Ignore(syscall.SIGTERM)
		fmt.Print("waiting")
		block()
	case "block": // half a line, then nothing for ever
		fmt.Print("waiting")
		block()
	case "flood": // n KiB
		chunk := strings.Repeat("x", 1<<10)
		for range n {
			fmt.Print(chunk)
		}
	case "brim":
		brim()
	case "memory":
		eat()
	case "fork":
		fork()
	case "child":
		block()
	case "files":
		files()
	case "inspect":
		_ = json.NewEncoder(os.Stdout).Encode(inspect())
	case "inodes":
		fmt.Print(count(func(i int) error { return os.WriteFile(fmt.Sprintf("/tmp/empty-%d", i), nil, 0o600) }))
	case "open":
		fmt.Print(count(func(int) error { _, err := syscall.Open("/dev/null", syscall.O_RDONLY, 0); return err }))
	case "spin":
		spin(time.Duration(n) * time.Millisecond)
	case "dump":
		dump()
	case "escape":
		_ = json.NewEncoder(os.Stdout).Encode(escape())
	case "first":
		first(n)
	case "listen":
		listen(n)
	case "reach":
		reach(os.Args[1])
	case "serve":
		serve(n)
	default:
		fmt.Println("unknown PROBE", mode)
		os.Exit(2)
	}
}

// once reads its prompt, leaves it as a file, and says who it is. A prompt "block" blocks it
// then; with "quiet" it says nothing.
func once() {
	var prompt []byte
	if name := os.Getenv("AGENTFM_PROMPT"); name != "" {
		prompt = []byte(read(name))
	} else {
		prompt, _ = io.ReadAll(os.Stdin)
	}
	host, _ := os.Hostname()
	_ = os.WriteFile("/tmp/output/prompt", prompt, 0o644)
	if string(prompt) == "quiet" {
		return
	}
	fmt.Println(host, string(prompt), os.Getenv("AGENTFM_MODEL"), read(os.Getenv("AGENTFM_REQUEST")))
	if string(prompt) == "block" {
		block()
	}
}

// pipe does with its prompt, which comes by a named pipe, what is asked.
func pipe(what string) {
	name := os.Getenv("AGENTFM_PROMPT")
	switch what {
	case "ignore": // but ends when there is a task
		for read(os.Getenv("AGENTFM_REQUEST")) == "" {
			time.Sleep(time.Millisecond)
		}
		fmt.Print("ignored")
	case "some":
		f, err := os.Open(name)
		check(err)
		_, err = io.CopyN(os.Stdout, f, 5)
		check(err)
	case "write":
		f, err := os.Open(name)
		check(err)
		_, err = os.OpenFile(name, os.O_WRONLY, 0)
		fmt.Print(err, os.Chmod(name, 0o666))
		_, _ = io.Copy(io.Discard, f)
	}
}

// count does something until it fails, and returns how often it did not.
func count(do func(int) error) int {
	for i := range 1 << 20 {
		if do(i) != nil {
			return i
		}
	}
	return 1 << 20
}

// spin uses as much of all processors as it gets, and says how many percent of one that is.
func spin(wall time.Duration) {
	began := time.Now()
	for range 4 {
		go func() {
			for i := 0; ; i++ {
				_ = i
			}
		}()
	}
	time.Sleep(wall)
	var used syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &used)
	fmt.Print(100 * (used.Utime.Nano() + used.Stime.Nano()) / time.Since(began).Nanoseconds())
	os.Exit(0)
}

// dump prints all that it can read, the ends of large files left out.
func dump() {
	fmt.Println(os.Environ(), os.Args)
	_ = filepath.WalkDir("/", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || strings.HasPrefix(name, "/sys/"):
			return fs.SkipDir
		case d.Type().IsRegular() && !strings.HasSuffix(name, "/probe"):
			if f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0); err == nil {
				_ = f.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				text, _ := io.ReadAll(io.LimitReader(f, 16<<10))
				_ = f.Close()
				fmt.Printf("%s: %s\n", name, text)
			}
		}
		return nil
	})
}

// segfault ends this process as a program that is not Go's ends.
func segfault() {
	var byDefault [4]uintptr
	_, _, _ = syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(syscall.SIGSEGV), uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0)
	_ = syscall.Kill(os.Getpid(), syscall.SIGSEGV)
	block()
}

// block waits for ever, without being a deadlock to the Go runtime.
func block() {
	r, _, _ := os.Pipe()
	_, _ = r.Read(make([]byte, 1))
}

// brim writes until nobody has taken anything for a while, and leaves a file then.
func brim() {
	var written atomic.Int64
	go func() {
		for chunk := make([]byte, 1<<10); ; written.Add(1) {
			_, _ = os.Stdout.Write(chunk)
		}
	}()
	for before := int64(-1); before != written.Load(); {
		before = written.Load()
		time.Sleep(2 * time.Second)
	}
	check(os.WriteFile(filepath.Join(os.Getenv("AGENTFM_OUTPUT"), "done"), nil, 0o644))
}

// eat takes memory until the kernel minds.
func eat() {
	var kept [][]byte
	for {
		page := make([]byte, 1<<20)
		for i := range page {
			page[i] = 1
		}
		kept = append(kept, page)
		_ = kept
	}
}

// fork starts children until it cannot, and says how many there are.
func fork() {
	children := 0
	for range 1000 {
		c := exec.Command(os.Args[0])
		c.Env = []string{"PROBE=child", "GOMAXPROCS=1"}
		if err := c.Start(); err != nil {
			break
		}
		children++
	}
	fmt.Print(children)
}

// files leaves a tree in the output folder.
func files() {
	out := os.Getenv("AGENTFM_OUTPUT")
	check(os.WriteFile(filepath.Join(out, "answer.txt"), []byte("42"), 0o600))
	check(os.Mkdir(filepath.Join(out, "sub"), 0o755))
	check(os.WriteFile(filepath.Join(out, "sub", "deep.txt"), []byte("deep"), 0o644))
}

func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// inspect returns what this process may do.
func inspect() map[string]any {
	report := map[string]any{
		"env":        os.Environ(),
		"status":     status(),
		"interfaces": interfaces(),
		"localhost":  localhost(),
		"writable":   writable("/", "/data", "/tmp", "/tmp/output", "/dev/shm", "/proc/sys/kernel", "/sys"),
		"uid":        os.Getuid(),
		"first":      os.Getpid() == 1,
		"data":       read("/data/kept"),
		"secrets":    secrets(),
		"mounts":     mounts(),
	}
	var files, core syscall.Rlimit
	_ = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files)
	_ = syscall.Getrlimit(syscall.RLIMIT_CORE, &core)
	report["nofile"], report["core"] = files.Max, core.Max
	report["executes_tmp"] = executesTmp()
	report["tmp_bytes"] = fill("/tmp/fill")
	return report
}

// secrets returns the files in /run/secrets, with whose they are and their mode.
func secrets() map[string]string {
	found := make(map[string]string)
	entries, _ := os.ReadDir("/run/secrets")
	for _, e := range entries {
		name := filepath.Join("/run/secrets", e.Name())
		var s syscall.Stat_t
		_ = syscall.Stat(name, &s)
		found[e.Name()] = fmt.Sprintf("%d:%d %o %s", s.Uid, s.Gid, s.Mode&0o777, read(name))
	}
	return found
}

func status() map[string]string {
	fields := make(map[string]string)
	for line := range strings.Lines(read("/proc/self/status")) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	return fields
}

func mounts() map[string]string {
	options := make(map[string]string)
	for line := range strings.Lines(read("/proc/self/mounts")) {
		if fields := strings.Fields(line); len(fields) > 3 {
			options[fields[1]] = fields[3]
		}
	}
	return options
}

func interfaces() []string {
	var names []string
	list, _ := net.Interfaces()
	for _, i := range list {
		names = append(names, i.Name)
	}
	return names
}

// localhost returns the addresses that the name leads to.
func localhost() []string {
	addresses, _ := net.LookupHost("localhost")
	return addresses
}

// writable returns the folders in which a file can be made.
func writable(dirs ...string) []string {
	var yes []string
	for _, dir := range dirs {
		name := filepath.Join(dir, "probe-write")
		if os.WriteFile(name, nil, 0o644) == nil {
			yes = append(yes, dir)
			_ = os.Remove(name)
		}
	}
	return yes
}

func executesTmp() bool {
	program, _ := os.ReadFile(os.Args[0])
	if err := os.WriteFile("/tmp/program", program, 0o755); err != nil {
		return true // a surprise either way
	}
	defer os.Remove("/tmp/program")
	c := exec.Command("/tmp/program")
	c.Env = []string{"PROBE=exit 0"}
	return c.Run() == nil
}

// fill writes to a file until it cannot, and returns how much went in.
func fill(name string) int {
	f, err := os.Create(name)
	if err != nil {
		return -1
	}
	defer f.Close()
	total := 0
	for {
		n, err := f.Write(make([]byte, 1<<16))
		total += n
		if err != nil || total > 1<<30 {
			return total
		}
	}
}

func read(name string) string {
	b, _ := os.ReadFile(name)
	return string(b)
}
