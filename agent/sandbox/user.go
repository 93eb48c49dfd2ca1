package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// An Identity is who a task runs as, in its sandbox.
type Identity struct {
	User, Group uint32
	Groups      []uint32
}

// maxUsersFile bounds an image's passwd and group.
const maxUsersFile = 1 << 20

// Lookup finds the user that an image names ("", "app", "1000", "app:web") in
// the image's own passwd and group. Nothing is followed out of root.
func Lookup(root, user string) (Identity, error) {
	var id Identity
	if user == "" {
		return id, nil
	}
	name, group, hasGroup := strings.Cut(user, ":")
	passwd, err := readUsers(root, "etc/passwd")
	if err != nil {
		return id, err
	}
	groups, err := readUsers(root, "etc/group")
	if err != nil {
		return id, err
	}
	login := name
	n, numeric := number(name)
	found := false
	for _, f := range passwd { // name:x:uid:gid:…
		uid, ok := number(f[2])
		gid, ok2 := number(f[3])
		if ok && ok2 && (f[0] == name || numeric && uid == n) {
			id.User, id.Group, login, found = uid, gid, f[0], true
			break
		}
	}
	switch {
	case !found && !numeric:
		return id, fmt.Errorf("the image runs as user %q, and its /etc/passwd has none", clip(name))
	case !found:
		id.User = n
	}
	if hasGroup {
		id.Group, err = findGroup(groups, group)
		return id, err
	}
	for _, f := range groups { // name:x:gid:member,member
		gid, ok := number(f[2])
		for member := range strings.SplitSeq(f[3], ",") {
			if ok && member == login && len(id.Groups) < 32 {
				id.Groups = append(id.Groups, gid)
			}
		}
	}
	return id, nil
}

func findGroup(groups [][]string, name string) (uint32, error) {
	for _, f := range groups {
		if gid, ok := number(f[2]); ok && f[0] == name {
			return gid, nil
		}
	}
	if gid, ok := number(name); ok {
		return gid, nil
	}
	return 0, fmt.Errorf("the image runs as group %q, and its /etc/group has none", clip(name))
}

// number reads a user or group that a sandbox can have.
func number(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n < RangeSize
}

// readUsers reads the lines of a file with at least four fields; a file that
// is not there has none.
func readUsers(dir, name string) (out [][]string, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("read the image's users: %w", err)
	}
	defer root.Close()
	fi, err := root.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("the image's %s cannot be read: it is not a file of the image", name)
	case !fi.Mode().IsRegular() || fi.Size() > maxUsersFile:
		return nil, fmt.Errorf("the image's %s is not a file of at most %d bytes", name, maxUsersFile)
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read the image's users: %w", err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, maxUsersFile+1)
	for s.Scan() {
		if fields := strings.Split(strings.TrimSpace(s.Text()), ":"); len(fields) >= 4 {
			out = append(out, fields)
		}
	}
	return out, s.Err()
}

func clip(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
