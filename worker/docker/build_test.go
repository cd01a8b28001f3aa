// SPDX-License-Identifier: Apache-2.0

//go:build unix

package docker

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestStepOf(t *testing.T) {
	for line, want := range map[string]float64{
		"Step 1/4 : FROM scratch": 0, "Step 3/4 : RUN x": 50, "STEP 4/4: COMMIT a": 75, "Step 9/4 : x": 100, "Step 1/0 : x": 0,
		"a Step 1/4": -1, "Step 1/4x": -1, "Step 1234567/2 : x": -1, "": -1,
	} {
		got, ok := stepOf(line)
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %v, want %v", line, got, want)
		}
	}
}

// pack returns the tar stream of a folder as name → what it is.
func pack(t *testing.T, dir string) map[string]string {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	ignored, err := readIgnoreFile(root)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := packFolder(&b, root, ignored, "Dockerfile"); err != nil {
		t.Fatal(err)
	}
	entries := make(map[string]string)
	for tr := tar.NewReader(&b); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" {
			t.Errorf("%s belongs to %d %d %q %q", h.Name, h.Uid, h.Gid, h.Uname, h.Gname)
		}
		text, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		entries[h.Name] = string(text) + h.Linkname
	}
}

func TestPackFolder(t *testing.T) {
	dir := folder(t, map[string]string{"Dockerfile": "FROM scratch", "src/main.py": "print()", "empty": ""})
	for _, link := range []struct{ name, target string }{{"link", "src/main.py"}, {"out", "/etc/passwd"}} {
		if err := os.Symlink(link.target, filepath.Join(dir, link.name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"Dockerfile": "FROM scratch", "src/": "", "src/main.py": "print()", "empty": "",
		"link": "src/main.py", "out": "/etc/passwd",
	}
	if got := pack(t, dir); !maps.Equal(got, want) {
		t.Errorf("packed %q, want %q", got, want)
	}
	// The folder itself may be a link.
	link := filepath.Join(t.TempDir(), "agent")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if got := pack(t, link); !maps.Equal(got, want) {
		t.Errorf("packed %q through a link, want %q", got, want)
	}
}

func TestDockerignore(t *testing.T) {
	files := map[string]string{
		"Dockerfile": "", "a.py": "", ".env": "", "data/big.bin": "", "data/keep.txt": "", "deep/x/y.log": "", "deep/x/y.txt": "",
	}
	for _, tc := range []struct {
		ignore string
		want   []string
	}{
		{"", []string{".dockerignore", ".env", "Dockerfile", "a.py", "data/", "data/big.bin", "data/keep.txt", "deep/", "deep/x/", "deep/x/y.log", "deep/x/y.txt"}},
		{"# no secrets\n.env\n", []string{".dockerignore", "Dockerfile", "a.py", "data/", "data/big.bin", "data/keep.txt", "deep/", "deep/x/", "deep/x/y.log", "deep/x/y.txt"}},
		{"*\n!a.py\n!data/keep.txt", []string{".dockerignore", "Dockerfile", "a.py", "data/keep.txt"}},
		{"data\n**/*.log\nDockerfile\n.dockerignore\n.env", []string{".dockerignore", "Dockerfile", "a.py", "deep/", "deep/x/", "deep/x/y.txt"}},
	} {
		files[".dockerignore"] = tc.ignore
		got := slices.Sorted(maps.Keys(pack(t, folder(t, files))))
		if !slices.Equal(got, tc.want) {
			t.Errorf("with %q, packed %q, want %q", tc.ignore, got, tc.want)
		}
	}
}

func TestBrokenDockerignore(t *testing.T) {
	root, err := os.OpenRoot(folder(t, map[string]string{".dockerignore": "[\n"}))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if _, err := readIgnoreFile(root); err == nil || !strings.Contains(err.Error(), ".dockerignore") {
		t.Errorf("error is %v", err)
	}
}
