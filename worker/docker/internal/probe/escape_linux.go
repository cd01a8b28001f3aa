// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errRefused says that a step did not work, where no error of the system does.
var errRefused = errors.New("refused")

// escapes are steps on the way out of a container. Each should fail.
var escapes = map[string]func() error{
	// more rights
	"capset": func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		data := [2]unix.CapUserData{{Effective: 1 << unix.CAP_SYS_ADMIN, Permitted: 1 << unix.CAP_SYS_ADMIN}}
		return unix.Capset(&header, &data[0])
	},
	"setuid":           func() error { return call(unix.SYS_SETUID, 0) },
	"setgid":           func() error { return call(unix.SYS_SETGID, 0) },
	"setgroups":        func() error { return call(unix.SYS_SETGROUPS, 1, ptr(&[1]uint32{0})) },
	"new privileges":   func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0) },
	"setuid program":   setuidProgram,
	"more open files":  func() error { return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}) },
	"priority":         func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -20) },
	"real time":        func() error { return call(unix.SYS_SCHED_SETSCHEDULER, 0, 1, ptr(&[1]int32{1})) },
	"out of memory":    func() error { return write("/proc/self/oom_score_adj", "-1000") },
	"user namespace":   func() error { return unshare(unix.CLONE_NEWUSER) },
	"mount namespace":  func() error { return unshare(unix.CLONE_NEWNS) },
	"net namespace":    func() error { return unshare(unix.CLONE_NEWNET) },
	"cgroup namespace": func() error { return unshare(unix.CLONE_NEWCGROUP) },
	"clone":            cloned,
	"setns":            setns,

	// mounts and roots
	"mount tmpfs":    func() error { return unix.Mount("none", "/tmp", "tmpfs", 0, "") },
	"mount proc":     func() error { return unix.Mount("none", "/tmp", "proc", 0, "") },
	"mount bind":     func() error { return unix.Mount("/proc", "/tmp", "", unix.MS_BIND, "") },
	"mount cgroup":   func() error { return unix.Mount("none", "/tmp", "cgroup", 0, "memory") },
	"remount root":   func() error { return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND, "") },
	"new mount API":  func() error { return call(unix.SYS_FSOPEN, str("tmpfs"), 0) },
	"unmount mask":   func() error { return unix.Unmount("/proc/kcore", unix.MNT_DETACH) },
	"pivot root":     func() error { return unix.PivotRoot("/tmp", "/tmp") },
	"chroot":         func() error { return unix.Chroot("/tmp") },
	"write root":     func() error { return write("/etc/probe", "x") },
	"write itself":   func() error { return write("/probe", "x") },
	"write mounted":  func() error { return write("/etc/hosts", "x") },
	"file by handle": fileByHandle,

	// devices
	"mknod block":     func() error { return unix.Mknod("/tmp/block", unix.S_IFBLK|0o600, int(unix.Mkdev(8, 0))) },
	"mknod character": func() error { return unix.Mknod("/tmp/mem", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 1))) },
	"mknod in output": func() error { return unix.Mknod("/tmp/output/mem", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 1))) },
	"devices":         devices,
	"/dev/mem":        func() error { return read1("/dev/mem") },
	"/dev/kmsg":       func() error { return read1("/dev/kmsg") },
	"I/O ports":       func() error { return call(unix.SYS_IOPL, 3) },

	// the kernel's settings and secrets
	"core pattern":  func() error { return write("/proc/sys/kernel/core_pattern", "|/probe") },
	"any /proc/sys": func() error { return anyWritable("/proc/sys") },
	"sysrq":         func() error { return write("/proc/sysrq-trigger", "h") },
	"/proc/irq":     func() error { return anyWritable("/proc/irq") },
	"uevent helper": func() error { return write("/sys/kernel/uevent_helper", "/probe") },
	"any /sys":      func() error { return anyWritable("/sys") },
	"cgroup write":  func() error { return anyWritable("/sys/fs/cgroup") },
	"cgroup mkdir":  cgroupDir,
	"kcore":         func() error { return read1("/proc/kcore") },
	"kernel keys":   func() error { return read1("/proc/keys") },
	"kernel timers": func() error { return read1("/proc/timer_list") },
	"firmware":      func() error { return readDir("/sys/firmware") },
	"dmesg":         func() error { _, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, make([]byte, 1<<10)); return err },
	"load module":   func() error { return call(unix.SYS_INIT_MODULE, ptr(&[1]byte{}), 1, str("")) },
	"load kernel":   func() error { return call(unix.SYS_KEXEC_LOAD, 0, 0, 0, 0) },
	"reboot": func() error {
		return call(unix.SYS_REBOOT, unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_CAD_OFF)
	},
	"swap":        func() error { return call(unix.SYS_SWAPON, str("/tmp/swap"), 0) },
	"host name":   func() error { return unix.Sethostname([]byte("x")) },
	"clock":       func() error { return call(unix.SYS_CLOCK_SETTIME, unix.CLOCK_REALTIME, ptr(&unix.Timespec{})) },
	"accounting":  func() error { return call(unix.SYS_ACCT, str("/tmp/acct")) },
	"disk quota":  func() error { return call(unix.SYS_QUOTACTL, 0x800001<<8, str("/"), 0, 0) },
	"watch files": func() error { _, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT, 0); return err },

	// parts of the kernel with a history
	"ptrace":         func() error { return call(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(other()), 0, 0) },
	"others' memory": func() error { return read1("/proc/1/mem") },
	"read memory": func() error {
		_, err := unix.ProcessVMReadv(other(), []unix.Iovec{}, []unix.RemoteIovec{{Base: 4096, Len: 1}}, 0)
		return err
	},
	"keyctl": func() error { return call(unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, ^uintptr(2), 1) },
	"add key": func() error {
		return call(unix.SYS_ADD_KEY, str("user"), str("probe"), ptr(&[1]byte{}), 1, ^uintptr(2))
	},
	"bpf": func() error { return call(unix.SYS_BPF, 0, ptr(&[72]byte{2, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 1}), 72) },
	"perf events": func() error {
		return call(unix.SYS_PERF_EVENT_OPEN, ptr(&unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Size: unix.PERF_ATTR_SIZE_VER5}), 0, ^uintptr(0), ^uintptr(0), 0)
	},
	"io_uring":       func() error { return call(unix.SYS_IO_URING_SETUP, 1, ptr(&[120]byte{})) },
	"userfaultfd":    func() error { return call(unix.SYS_USERFAULTFD, 0) },
	"raw socket":     func() error { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) },
	"packet socket":  func() error { return socket(unix.AF_PACKET, unix.SOCK_RAW, 0) },
	"nested virtual": func() error { return read1("/dev/kvm") },

	// who else is there
	"engine's socket": sockets,
	"other processes": processes,
	"loopback":        func() error { return dial("tcp", "127.0.0.1:22") },
	"metadata":        func() error { return dial("tcp", "169.254.169.254:80") },
}

// escape tries all steps, and returns how each failed; an empty text says that it did not.
func escape() map[string]string {
	report := make(map[string]string)
	for name, try := range escapes {
		report[name] = ""
		if err := inOwnThread(try); err != nil {
			report[name] = err.Error()
		}
	}
	return report
}

// inOwnThread runs a step in a thread that ends with it: some change their thread.
func inOwnThread(try func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		result <- try()
	}()
	return <-result
}

func call(number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return errno
	}
	return nil
}

func ptr[T any](v *T) uintptr { return uintptr(unsafe.Pointer(v)) }

func str(s string) uintptr {
	b, _ := unix.BytePtrFromString(s)
	return uintptr(unsafe.Pointer(b))
}

func unshare(flags int) error { return unix.Unshare(flags) }

func write(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o600)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

// read1 reads a byte, of what may be masked by something empty.
func read1(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Read(make([]byte, 1))
	return err
}

func readDir(name string) error {
	entries, err := os.ReadDir(name)
	if err == nil && len(entries) == 0 {
		err = errRefused
	}
	return err
}

// anyWritable opens all files below a folder for writing.
func anyWritable(dir string) error {
	found := ""
	_ = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if f, err := os.OpenFile(name, os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
			_ = f.Close()
			found = name
			return fs.SkipAll
		}
		return nil
	})
	if found != "" {
		return nil
	}
	return errRefused
}

func cgroupDir() error {
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*")
	for _, dir := range append(dirs, "/sys/fs/cgroup") {
		if os.Mkdir(filepath.Join(dir, "probe"), 0o700) == nil {
			return nil
		}
	}
	return errRefused
}

// devices looks for devices beside those that every container has.
func devices() error {
	usual := []string{"console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"}
	entries, err := os.ReadDir("/dev")
	for _, e := range entries {
		if !slices.Contains(usual, e.Name()) {
			return nil
		}
	}
	return errors.Join(errRefused, err)
}

// setuidProgram makes a program of its user that would run as that user, and more.
func setuidProgram() error {
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		return err
	}
	name := "/tmp/output/setuid"
	if err := os.WriteFile(name, program, 0o755); err != nil {
		return err
	}
	defer os.Remove(name)
	if err := os.Chown(name, 0, 0); err != nil {
		return err
	}
	return os.Chmod(name, 0o4755|os.ModeSetuid)
}

func cloned() error {
	c := exec.Command(os.Args[0])
	c.Env = []string{"PROBE=exit 0"}
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS}
	return c.Run()
}

func setns() error {
	f, err := os.Open("/proc/1/ns/net")
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Setns(int(f.Fd()), 0)
}

func fileByHandle() error {
	handle := unix.NewFileHandle(1, []byte{2, 0, 0, 0, 0, 0, 0, 0})
	root, err := unix.Open("/", unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	fd, err := unix.OpenByHandleAt(root, handle, unix.O_RDONLY)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err
}

func socket(domain, kind, protocol int) error {
	fd, err := unix.Socket(domain, kind, protocol)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err
}

// sockets looks for those of services of the host.
func sockets() error {
	for _, name := range []string{
		"/run/docker.sock", "/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock", "/run/crio/crio.sock", "/run/dbus/system_bus_socket",
		"@/containerd-shim", "@docker",
	} {
		if dial("unix", name) == nil {
			return nil
		}
	}
	return errRefused
}

func dial(network, address string) error {
	c, err := net.Dial(network, address)
	if err == nil {
		_ = c.Close()
	}
	return err
}

// other returns a process that is not this one nor its child: the init, or the parent
// of them all, which a first process sees as none.
func other() int {
	if os.Getpid() == 1 {
		return 2
	}
	return 1
}

// processes looks for more than an init and this one.
func processes() error {
	entries, err := os.ReadDir("/proc")
	for _, e := range entries {
		if strings.Trim(e.Name(), "0123456789") == "" && e.Name() != "1" {
			name, _ := os.Readlink("/proc/" + e.Name() + "/exe")
			if name != "/probe" {
				return nil
			}
		}
	}
	return errors.Join(errRefused, err)
}
