// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/iotest"
)

// helloTo returns the first message of a TLS client that goes to a server by that
// name.
func helloTo(t testing.TB, name string) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go func() {
		defer ours.Close()
		_ = tls.Client(ours, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
	}()
	b := make([]byte, 16<<10)
	n, err := theirs.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// inRecords returns a handshake message in records of so many bytes.
func inRecords(hello []byte, size int) []byte {
	var out []byte
	for message := hello[5:]; len(message) > 0; {
		n := min(size, len(message))
		out = append(out, 22, 3, 1, byte(n>>8), byte(n))
		out, message = append(out, message[:n]...), message[n:]
	}
	return out
}

func TestHello(t *testing.T) {
	hello := helloTo(t, "a.example.com")
	for _, tc := range []struct {
		name   string
		bytes  []byte
		server string
		err    string
	}{
		{"its name", hello, "a.example.com", ""},
		{"in small records", inRecords(hello, 7), "a.example.com", ""},
		{"more after it", append(bytes.Clone(hello), "more"...), "a.example.com", ""},
		{"in capitals", helloTo(t, "A.Example.COM"), "a.example.com", ""},
		{"another name", hello, "b.example.com", `its TLS is for the server "a.example.com"`},
		{"no name", helloTo(t, ""), "a.example.com", "its TLS names no server"},
		{"an address", helloTo(t, "10.0.0.1"), "a.example.com", "its TLS names no server"}, // it is not sent
		{"HTTP", []byte("GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n"), "a.example.com", "goes TLS alone"},
		{"SSH", []byte("SSH-2.0-x\r\n"), "a.example.com", "goes TLS alone"},
		{"half of it", hello[:len(hello)/2], "a.example.com", "goes TLS alone"},
		{"too much", inRecords(append([]byte{0, 0, 0, 0, 0, 1, 1, 0, 0}, make([]byte, 1<<18)...), 1<<14), "a.example.com", "goes TLS alone"},
		{"nothing", nil, "a.example.com", "EOF"},
	} {
		got, err := readHello(iotest.OneByteReader(bytes.NewReader(tc.bytes)), tc.server)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) || len(tc.bytes) > 0 != errors.Is(err, errDenied) {
				t.Errorf("%s: error is %v, want %q", tc.name, err, tc.err)
			}
			continue
		}
		if err != nil || !bytes.HasPrefix(tc.bytes, got) || len(got) == 0 {
			t.Errorf("%s: %d bytes (%v), of %d", tc.name, len(got), err, len(tc.bytes))
		}
	}
}

func FuzzHello(f *testing.F) {
	hello := helloTo(f, "a.example.com")
	f.Add(hello)
	f.Add(inRecords(hello, 3))
	f.Add(helloTo(f, ""))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := readHello(bytes.NewReader(b), "a.example.com")
		if err != nil {
			return
		}
		if !bytes.HasPrefix(b, got) {
			t.Error("what is passed on is not what came")
		}
		if _, err := readHello(bytes.NewReader(got), "a.example.com"); err != nil {
			t.Errorf("what is passed on is read in another way: %v", err)
		}
	})
}
