// SPDX-License-Identifier: Apache-2.0

// Package option reads the options of a Caddyfile block the strict way: an
// option that is unknown, stands twice, or has too few or too many arguments is
// an error that names the file and the line.
package option

import (
	"math"
	"slices"
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/dustin/go-humanize"
)

// Read reads the option at the dispenser's cursor, for one that is made of others.
func (o Option) Read(d *caddyfile.Dispenser) error { return o.read(d) }

// Set is the options of a block by name.
type Set map[string]Option

// Option is one option of a block.
type Option struct {
	read   func(*caddyfile.Dispenser) error
	repeat bool
}

// Func is an option whose line and block are read by a function.
func Func(read func(*caddyfile.Dispenser) error) Option { return Option{read: read} }

// Each is like Func, for an option that may stand more than once.
func Each(read func(*caddyfile.Dispenser) error) Option { return Option{read: read, repeat: true} }

// Unmarshal reads a directive, a global option or a module that has nothing but a
// block: the name, no arguments, the block.
func (s Set) Unmarshal(d *caddyfile.Dispenser) error {
	d.Next() // consume the name
	if d.NextArg() {
		return d.ArgErr()
	}
	return s.Block(d)
}

// Block reads the block at the dispenser's cursor.
func (s Set) Block(d *caddyfile.Dispenser) error {
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		name := d.Val()
		o, ok := s[name]
		if !ok {
			return d.Errf("unrecognized option '%s'", name)
		}
		if seen[name] && !o.repeat {
			return d.Errf("option '%s' is already specified", name)
		}
		seen[name] = true
		if err := o.read(d); err != nil {
			return err
		}
	}
	return nil
}

// String reads exactly one argument into v.
func String(v *string) Option {
	return Func(func(d *caddyfile.Dispenser) error {
		args := d.RemainingArgs()
		if len(args) != 1 || args[0] == "" {
			return d.ArgErr()
		}
		*v = args[0]
		return noBlock(d)
	})
}

// Key reads exactly one argument, a secret, into v. Errors do not show it.
func Key(v *string) Option {
	return Func(func(d *caddyfile.Dispenser) error {
		name := d.Val()
		args := d.RemainingArgs()
		if len(args) != 1 || args[0] == "" {
			return d.Errf("%s: want one key", name)
		}
		*v = args[0]
		return noBlock(d)
	})
}

// Keys reads one or two arguments, a secret and the one before it, into v and old. Errors
// do not show them.
func Keys(v, old *string) Option {
	return Func(func(d *caddyfile.Dispenser) error {
		name := d.Val()
		args := d.RemainingArgs()
		if len(args) < 1 || len(args) > 2 || slices.Contains(args, "") {
			return d.Errf("%s: want a secret, and the one before it if receivers still have that", name)
		}
		if *v = args[0]; len(args) == 2 {
			*old = args[1]
		}
		return noBlock(d)
	})
}

// Strings reads one or more arguments into v.
func Strings(v *[]string) Option {
	return Func(func(d *caddyfile.Dispenser) error {
		if *v = d.RemainingArgs(); len(*v) == 0 {
			return d.ArgErr()
		}
		return noBlock(d)
	})
}

// Map reads a name and a value into v. It may stand more than once, each time
// with another name. Errors do not show the value, which may be a secret.
func Map(v *map[string]string) Option {
	return Each(func(d *caddyfile.Dispenser) error {
		option := d.Val()
		args := d.RemainingArgs()
		if len(args) != 2 {
			return d.Errf("%s: want a name and a value", option)
		}
		if _, ok := (*v)[args[0]]; ok {
			return d.Errf("%s: '%s' is already specified", option, args[0])
		}
		if *v == nil {
			*v = make(map[string]string)
		}
		(*v)[args[0]] = args[1]
		return noBlock(d)
	})
}

// parsed reads exactly one argument and turns it into v with parse.
func parsed[T any](v *T, what string, parse func(string) (T, error)) Option {
	return Func(func(d *caddyfile.Dispenser) error {
		name := d.Val()
		var s string
		if err := String(&s).read(d); err != nil {
			return err
		}
		x, err := parse(s)
		if err != nil {
			return d.Errf("%s: '%s' is not %s", name, s, what)
		}
		*v = x
		return nil
	})
}

// Flag is an option without arguments; it sets v.
func Flag(v *bool) Option {
	return Func(func(d *caddyfile.Dispenser) error {
		if d.NextArg() {
			return d.ArgErr()
		}
		*v = true
		return noBlock(d)
	})
}

// Count reads a whole number, 0 or more, into v.
func Count(v **int) Option {
	return parsed(v, "a whole number, 0 or more", func(s string) (*int, error) {
		x, err := strconv.Atoi(s)
		if err == nil && x < 0 {
			err = strconv.ErrRange
		}
		return &x, err
	})
}

// Size reads a size in bytes above 0, such as 32MiB, into v.
func Size(v *int64) Option {
	return parsed(v, "a size such as 32MiB", func(s string) (int64, error) {
		x, err := humanize.ParseBytes(s)
		if err == nil && (x == 0 || x > math.MaxInt64) {
			err = strconv.ErrRange
		}
		return int64(x), err
	})
}

// PositiveInt reads a whole number above 0 into v: in JSON, 0 is the default.
func PositiveInt[T int | int64](v *T) Option {
	return parsed(v, "a whole number above 0", func(s string) (T, error) {
		x, err := strconv.ParseInt(s, 10, 64)
		if err == nil && (x <= 0 || int64(T(x)) != x) {
			err = strconv.ErrRange
		}
		return T(x), err
	})
}

// PositiveFloat reads a number above 0 into v.
func PositiveFloat(v *float64) Option {
	return parsed(v, "a number above 0", func(s string) (float64, error) {
		x, err := strconv.ParseFloat(s, 64)
		if err == nil && !(x > 0) {
			err = strconv.ErrRange
		}
		return x, err
	})
}

// Score reads a number between -1 and 1 into v.
func Score(v **float64) Option {
	return parsed(v, "a number between -1 and 1", func(s string) (*float64, error) {
		x, err := strconv.ParseFloat(s, 64)
		if err == nil && !(x >= -1 && x <= 1) {
			err = strconv.ErrRange
		}
		return &x, err
	})
}

// Percent reads a percentage into v, or "off" as -1.
func Percent(v *float64) Option {
	return parsed(v, "a percentage or off", func(s string) (float64, error) {
		if s == "off" {
			return -1, nil
		}
		p, err := strconv.ParseFloat(s, 64)
		if err == nil && (p <= 0 || p > 100) {
			err = strconv.ErrRange
		}
		return p, err
	})
}

// Duration reads a duration such as 90s or 10m into v.
func Duration(v *caddy.Duration) Option {
	return parsed(v, "a duration such as 90s", parseDuration)
}

// DurationOrOff reads a duration into v, or "off" as -1.
func DurationOrOff(v *caddy.Duration) Option {
	return parsed(v, "a duration such as 90s, or off", func(s string) (caddy.Duration, error) {
		if s == "off" {
			return -1, nil
		}
		return parseDuration(s)
	})
}

// parseDuration reads a duration above 0: in JSON, 0 is the default.
func parseDuration(s string) (caddy.Duration, error) {
	x, err := caddy.ParseDuration(s)
	if err == nil && x <= 0 {
		err = strconv.ErrRange
	}
	return caddy.Duration(x), err
}

// noBlock refuses a block where none is expected.
func noBlock(d *caddyfile.Dispenser) error {
	if d.NextBlock(d.Nesting()) {
		return d.Errf("unexpected block")
	}
	return nil
}
