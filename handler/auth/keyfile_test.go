// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseFile(t *testing.T) {
	hash := Hash("the-secret-key-of-bob")
	for _, row := range []struct {
		text   string
		id     string // of the only key; "" for the default
		models []string
		read   bool
		run    bool
		ends   string
	}{
		{"the-secret-key-of-bob", "", nil, true, true, ""},
		{"the-secret-key-of-bob\n", "", nil, true, true, ""},
		{"\ufeff# comment\r\n\r\n \t# another\r\n  the-secret-key-of-bob \r\n\t\n", "", nil, true, true, ""},
		{"bob the-secret-key-of-bob", "bob", nil, true, true, ""},
		{"b.o_b@x-1 \t the-secret-key-of-bob\t", "b.o_b@x-1", nil, true, true, ""},
		{hash, "", nil, true, true, ""},
		{"bob " + strings.ToUpper(hash), "bob", nil, true, true, ""},
		{"the-secret-key-of-bob models=a", "", []string{"a"}, true, true, ""},
		{`bob the-secret-key-of-bob models="HR Assistant, llama3.2" scope=read`, "bob", []string{"HR Assistant", "llama3.2"}, true, false, ""},
		{`bob the-secret-key-of-bob scope="run" models=a,b expires=2030-01-01T01:00:00+01:00`, "bob", []string{"a", "b"}, false, true, "2030-01-01T00:00:00Z"},
		{`bob the-secret-key-of-bob expires="2030-01-01T00:00:00Z"`, "bob", nil, true, true, "2030-01-01T00:00:00Z"},
		{`bob the-secret-key-of-bob models="a=b,#c"`, "bob", []string{"a=b", "#c"}, true, true, ""},
	} {
		keys, err := parseFile([]byte(row.text))
		if err != nil || len(keys) != 1 {
			t.Errorf("%q: got %d keys, %v", row.text, len(keys), err)
			continue
		}
		k := keys[0]
		if want, _ := hashKey("the-secret-key-of-bob"); k.hash != want {
			t.Errorf("%q: another key", row.text)
		}
		want := row.id
		if want == "" {
			want = "key-" + hash[len(hashPrefix):][:8]
		}
		if k.identity.ID != want || k.identity.MayRead() != row.read || k.identity.MayRun() != row.run {
			t.Errorf("%q: got %+v", row.text, k.identity)
		}
		if len(k.identity.models) != len(row.models) || k.identity.MayUse("other") != (row.models == nil) {
			t.Errorf("%q: models %v", row.text, k.identity.models)
		}
		for _, m := range row.models {
			if !k.identity.MayUse(m) {
				t.Errorf("%q: may not use %q", row.text, m)
			}
		}
		var ends time.Time
		if row.ends != "" {
			ends, _ = time.Parse(time.RFC3339, row.ends)
		}
		if !k.expires.Equal(ends) {
			t.Errorf("%q: expires %v", row.text, k.expires)
		}
	}
	keys, err := parseFile([]byte("a== the-key-with-a-pad-=="))
	if err == nil {
		t.Errorf("a name with an equals sign: %d keys", len(keys))
	}
	if _, err := parseFile([]byte("bob QUJDREVGR0hJSktMTU5PUA==")); err != nil {
		t.Errorf("base64: %v", err)
	}
}

func TestParseFileRefuses(t *testing.T) {
	const good = "first the-first-secret-key\n"
	for text, want := range map[string]string{
		"":                              "no key is in it",
		"# nothing\n\n":                 "no key is in it",
		"secret-15-chars":               "line 1: the key has fewer than 16 characters",
		good + "bob secret-15-chars":    "line 2: the key has fewer than 16 characters",
		"# x\n\nbob sha256:secret":      "line 3: the key has a hash that is not 64 hex digits",
		"SHA256:secretsecretsecret":     "line 1: the key has a hash",
		"sha256:" + Hash(keyOne):        "line 1: the key has a hash",
		Hash(keyOne) + "00":             "line 1: the key has a hash",
		strings.Repeat("secret", 100):   "line 1: the key has more than 512 bytes",
		"bob secret-secret\u00a0secret": "line 1: the key contains white space",
		"bob secret-secret\x01secret":   "line 1: the key contains a control character",
		"bob secret-secret-\xff":        "not UTF-8",
		"b/b secret-secret-secret":      "line 1: the name is not 1 to 64",
		strings.Repeat("secret", 11) + " secret-secret-secret": "line 1: the name is not 1 to 64",
		"sha256:x secret-secret-secret":                        "line 1: the name is not",
		"afm_secret-secret secret-secret-secret":               "line 1: the name looks like a key",
		"bob secret-secret-secret secret2":                     "line 1: too many fields",
		"bob secret-secret-secret readonly":                    "line 1: too many fields",
		"models=secret":                                        "line 1: the key is missing",
		"scope=read secret-secret-secret":                      "line 1: the key is missing",
		"secret=secret-secret-secret":                          "line 1: the key is missing",
		"bob scope=read secret-secret-secret":                  "line 1: the key has fewer than 16",
		"secret-secret-secret scope=read secret":               "line 1: a name and a key must stand before the options",
		"secret-secret-secret model=secret-secret-secret":      "line 1: unrecognized option",
		"secret-secret-secret models2=secret-secret":           "line 1: unrecognized option",
		"secret-secret-secret Models=secret-secret":            "line 1: unrecognized option",
		"bob secret-secret=secret":                             "line 1: the key has fewer than 16",
		"bob secret-secret-secret scope=read scope=run":        "line 1: an option is already specified",
		"bob secret-secret-secret scope=read,run":              "line 1: scope is neither",
		"bob secret-secret-secret scope=":                      "line 1: scope is neither",
		"bob secret-secret-secret scope=admin":                 "line 1: scope is neither",
		"bob secret-secret-secret models=":                     "line 1: models has an empty name",
		"bob secret-secret-secret models=secret,":              "line 1: models has an empty name",
		`bob secret-secret-secret models=""`:                   "line 1: models has an empty name",
		"bob secret-secret-secret models=*":                    "line 1: models has a *",
		"bob secret-secret-secret expires=":                    "line 1: expires is not a time",
		"bob secret-secret-secret expires=secret":              "line 1: expires is not a time",
		"bob secret-secret-secret expires=2030-01-01":          "line 1: expires is not a time",
		`bob "secret-secret-secret"`:                           "line 1: a quotation mark out of place",
		`bob secret-secret"secret"`:                            "line 1: a quotation mark out of place",
		`bob secret-secret-secret models="secret`:              "line 1: a quotation mark out of place",
		`bob secret-secret-secret models="secret"secret`:       "line 1: a quotation mark out of place",
		`bob secret-secret-secret models=a"secret"`:            "line 1: a quotation mark out of place",
		`bob secret-secret-secret "models=secret"`:             "line 1: a quotation mark out of place",
		"bob-of-sixteen-letters # secret":                      "line 1: a comment must stand on a line of its own",
		"bob secret-secret-secret #secret":                     "line 1: a comment must stand",
	} {
		keys, err := parseFile([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(strings.ReplaceAll(err.Error(), optSecret, ""), "secret") {
			t.Errorf("%q: got %d keys, %v, want %q", text, len(keys), err, want)
		}
	}
}

func TestWebhookSecret(t *testing.T) {
	const key = "bob the-secret-key-of-bob "
	for option, want := range map[string]string{
		"": "", "webhook_secret=hush-hush": "", "webhook_secret=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw,hush": "", `webhook_secret="hush # hush"`: "",
		"webhook_secret=":                        "line 1: webhook_secret: a secret is empty",
		"webhook_secret=hush,":                   "line 1: webhook_secret: a secret is empty",
		"webhook_secret=hush,hush,hush":          "line 1: webhook_secret: more than two",
		"webhook_secret=whsec_hush":              "line 1: webhook_secret: what follows whsec_",
		"webhook_secret=hush webhook_secret=hus": "line 1: an option is already specified",
		"webhook_secret":                         "line 1: too many fields",
	} {
		keys, err := parseFile([]byte(key + option))
		if want == "" {
			if err != nil || (keys[0].signer != nil) != (option != "") {
				t.Errorf("%q: %v", option, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hus") {
			t.Errorf("%q: got %v, want %s", option, err, want)
		}
	}
}

func TestParseFileIsBounded(t *testing.T) {
	var b strings.Builder
	for i := range maxKeys {
		fmt.Fprintf(&b, "the-key-of-number-%d\n", i)
	}
	if keys, err := parseFile([]byte(b.String())); err != nil || len(keys) != maxKeys {
		t.Errorf("got %d keys, %v", len(keys), err)
	}
	b.WriteString("one-key-too-many-now\n")
	if _, err := parseFile([]byte(b.String())); err == nil || !strings.Contains(err.Error(), "line 10001: more than 10000 keys") {
		t.Errorf("got %v", err)
	}
	if _, err := parseFile(make([]byte, maxFile+1)); err == nil || !strings.Contains(err.Error(), "more than 1048576 bytes") {
		t.Errorf("got %v", err)
	}
}

func TestValues(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte("first-key-of-the-file\r\nsecond-key-of-the-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TEST_KEYS", " "+keyOne+" , "+keyTwo+",")
	t.Setenv("TEST_EMPTY", "")
	for _, r := range []struct {
		values []string
		has    []string
		err    string
	}{
		{[]string{keyOne}, []string{keyOne}, ""},
		{[]string{"{env.TEST_KEYS}"}, []string{keyOne, keyTwo}, ""},
		{[]string{"{env.TEST_KEYS}", "a-third-key-as-text"}, []string{keyOne, keyTwo, "a-third-key-as-text"}, ""},
		{[]string{"{env.TEST_KEYS}", keyTwo}, []string{keyOne, keyTwo}, ""},
		{[]string{"{file." + file + "}"}, []string{"first-key-of-the-file", "second-key-of-the-file"}, ""},
		{[]string{"ключ-из-букв-а-не"}, []string{"ключ-из-букв-а-не"}, ""},
		{[]string{Hash(keyOne)}, []string{keyOne}, ""},
		{[]string{}, nil, "no key is given"},
		{[]string{""}, nil, "no key is given"},
		{[]string{" , ,"}, nil, "no key is given"},
		{[]string{"{env.TEST_EMPTY}"}, nil, "{env.TEST_EMPTY} is empty"},
		{[]string{"{env.TEST_UNSET}"}, nil, "{env.TEST_UNSET} is empty"},
		{[]string{keyOne, "{env.TEST_UNSET}"}, nil, "{env.TEST_UNSET} is empty"},
		{[]string{"{file./nonexistent/secret}"}, nil, "cannot be read"},
		{[]string{"{nonsense.secret-secret}"}, nil, "value 1 has a placeholder"},
		{[]string{"secret{secret}secret-secret"}, nil, "value 1 has a placeholder"},
		{[]string{keyOne, "secret-15-chars"}, nil, "key 2 has fewer than 16 characters"},
		{[]string{keyOne + ",secret-15-chars"}, nil, "key 2 has fewer than 16 characters"},
		{[]string{"secret with white space"}, nil, "key 1 contains white space"},
		{[]string{"sha256:secret-secret-secret"}, nil, "key 1 has a hash that is not 64 hex digits"},
		{[]string{strings.Repeat("secret-", 100)}, nil, "key 1 has more than 512 bytes"},
	} {
		keys, err := parseValues(r.values)
		if r.err != "" {
			if err == nil || !strings.Contains(err.Error(), r.err) || strings.Contains(err.Error(), "secret-") {
				t.Errorf("%q: got %v, want %q", r.values, err, r.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", r.values, err)
			continue
		}
		set, err := merge(nil, keys)
		if err != nil || len(set) != len(r.has) {
			t.Errorf("%q: got %d keys, %v", r.values, len(set), err)
		}
		for _, key := range r.has {
			if set.find(key) == nil || set.find(key+"x") != nil || set.find("") != nil {
				t.Errorf("%q: %q is not right", r.values, key)
			}
		}
	}
}

func FuzzParseFile(f *testing.F) {
	for _, text := range []string{
		"", "# x\n\n", "bob the-secret-key-of-bob models=\"HR Assistant,llama3.2\" scope=read expires=2030-01-01T00:00:00Z\n",
		"the-secret-key-of-bob\nann " + Hash(keyOne) + " models=a,b\r\n", "a b c=d e=\"f g\" #h", "\ufeff\x00=\"",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := parseFile(b)
		if err != nil {
			return
		}
		if len(keys) == 0 || len(keys) > maxKeys {
			t.Fatalf("%d keys", len(keys))
		}
		for _, k := range keys {
			id := k.identity
			if k.line < 1 || !nameForm.MatchString(id.ID) || !id.MayRead() && !id.MayRun() || id.models != nil && len(id.models) == 0 || id.MayUse("") != (id.models == nil) {
				t.Errorf("got %+v, %+v", k, id)
			}
		}
	})
}
