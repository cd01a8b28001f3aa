// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/build"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"go.uber.org/zap"
)

// ignoreFile names what a build does not get, as in Docker.
const ignoreFile = ".dockerignore"

// build builds the image from its folder and returns its id, which is empty
// where the engine does not tell it.
func (r *Runtime) build(ctx context.Context, e engine, ref string, to teller) (string, error) {
	root, err := os.OpenRoot(r.Build)
	if err != nil {
		return "", err
	}
	defer root.Close()
	dockerfile, err := findDockerfile(root.FS())
	if err != nil {
		return "", err
	}
	ignored, err := readIgnoreFile(root)
	if err != nil {
		return "", err
	}

	start := time.Now()
	r.logger.Info("building image", zap.String("image", ref), zap.String("folder", r.Build))
	source, sink := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := packFolder(sink, root, ignored, dockerfile)
		_ = sink.CloseWithError(err)
		packed <- err
	}()
	to.tell("building image", 0)
	id, err := r.sendBuild(ctx, e, to, source, build.ImageBuildOptions{
		Tags:        []string{ref},
		Platform:    r.Platform,
		Dockerfile:  dockerfile,
		Remove:      true,
		ForceRemove: true,
	})
	_ = source.Close() // the engine may have had enough before the end
	if packErr := <-packed; packErr != nil && !errors.Is(packErr, io.ErrClosedPipe) {
		return "", packErr // the engine's error follows from it
	}
	if err != nil {
		return "", err
	}
	r.logger.Info("image is built", zap.String("image", ref), zap.String("digest", id), zap.Duration("duration", time.Since(start)))
	return id, nil
}

// sendBuild has the engine build from a tar stream, and logs what it says.
func (r *Runtime) sendBuild(ctx context.Context, e engine, to teller, source io.Reader, options build.ImageBuildOptions) (string, error) {
	ctx, said, cancel := listened(ctx, buildSilence)
	defer cancel(nil)
	answer, err := e.ImageBuild(ctx, source, options)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	var id string
	for dec := json.NewDecoder(answer.Body); ; {
		var message struct {
			Stream      string `json:"stream"`
			ErrorDetail *struct {
				Message string `json:"message"`
			} `json:"errorDetail"`
			Aux struct {
				ID string `json:"ID"`
			} `json:"aux"`
		}
		err := dec.Decode(&message)
		said()
		switch {
		case errors.Is(err, io.EOF):
			return id, nil
		case ctx.Err() != nil:
			return "", context.Cause(ctx)
		case err != nil:
			return "", fmt.Errorf("reading the engine's answer: %w", err)
		}
		if message.ErrorDetail != nil {
			return "", errors.New(message.ErrorDetail.Message)
		}
		if message.Aux.ID != "" {
			id = message.Aux.ID
		}
		if line := strings.TrimSpace(message.Stream); line != "" {
			r.logger.Debug("building image", zap.String("step", line))
			if percent, ok := stepOf(line); ok {
				to.tell("building image", percent)
			}
		}
	}
}

// buildStep is how an engine says at which step of a build it is.
var buildStep = regexp.MustCompile(`^(?:Step|STEP) (\d{1,6})/(\d{1,6})\b`)

// stepOf returns how many percent of the steps are done before that of a line.
func stepOf(line string) (float64, bool) {
	m := buildStep.FindStringSubmatch(line)
	if m == nil {
		return 0, false
	}
	step, _ := strconv.ParseInt(m[1], 10, 64)
	steps, _ := strconv.ParseInt(m[2], 10, 64)
	return share(step-1, steps), true
}

// findDockerfile returns the name of the file that a folder is built with.
func findDockerfile(folder fs.FS) (string, error) {
	var found []string
	for _, name := range []string{"Dockerfile", "Containerfile"} {
		_, err := fs.Stat(folder, name)
		if err == nil {
			found = append(found, name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	switch len(found) {
	case 0:
		return "", errors.New("there is no Dockerfile and no Containerfile")
	case 1:
		return found[0], nil
	}
	return "", errors.New("there is a Dockerfile and a Containerfile: remove one")
}

// readIgnoreFile reads the .dockerignore of a folder, if it has one.
func readIgnoreFile(root *os.Root) (*patternmatcher.PatternMatcher, error) {
	f, err := root.Open(ignoreFile)
	if errors.Is(err, fs.ErrNotExist) {
		return patternmatcher.New(nil)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	patterns, err := ignorefile.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", ignoreFile, err)
	}
	ignored, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", ignoreFile, err)
	}
	return ignored, nil
}

// packFolder writes a folder as a tar stream: regular files, folders and
// symbolic links, all owned by root, without what is ignored. The engine needs
// the Dockerfile and the .dockerignore even where they are ignored.
func packFolder(w io.Writer, root *os.Root, ignored *patternmatcher.PatternMatcher, dockerfile string) error {
	tw := tar.NewWriter(w)
	err := fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		if name != dockerfile && name != ignoreFile {
			skip, err := ignored.MatchesOrParentMatches(name)
			if err != nil {
				return err
			}
			if skip && entry.IsDir() && !ignored.Exclusions() {
				return fs.SkipDir
			}
			if skip { // in an ignored folder, an exception (!name) may follow
				return nil
			}
		}
		return packEntry(tw, root, name, entry)
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

// packEntry writes one file, folder or link.
func packEntry(tw *tar.Writer, root *os.Root, name string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if err != nil {
		return err
	}
	var target string
	switch info.Mode().Type() {
	case 0, fs.ModeDir:
	case fs.ModeSymlink:
		if target, err = root.Readlink(name); err != nil {
			return err
		}
	default: // sockets, pipes and devices are no part of an image
		return nil
	}
	header, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	header.Name = name
	if info.IsDir() {
		header.Name += "/"
	}
	header.Uid, header.Gid, header.Uname, header.Gname = 0, 0, "", ""
	if err := tw.WriteHeader(header); err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.CopyN(tw, f, header.Size); err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	return nil
}
