package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"virtvzd/runtime"
)

// setUserPassword has chpasswd(8) inside do it, as the agent does: it knows
// how passwords are kept there.
func (a *Agent) setUserPassword(ctx context.Context, args struct {
	User      string `json:"username"`
	Password  []byte `json:"password"`
	Encrypted bool   `json:"crypted"`
}) (any, error) {
	switch {
	case args.User == "" || strings.ContainsAny(args.User, ":\n"):
		return nil, errors.New("the user's name is empty, or has a colon or a line break")
	case bytes.ContainsRune(args.Password, '\n'):
		return nil, errors.New("forbidden characters in raw password")
	}
	said := &output{}
	c := runtime.Command{
		Args: []string{"chpasswd"}, Stdin: strings.NewReader(args.User + ":" + string(args.Password) + "\n"),
		Stdout: said, Stderr: said,
	}
	if args.Encrypted {
		c.Args = append(c.Args, "-e")
	}
	status, err := a.guest.Exec(ctx, c)
	if err == nil && status != 0 {
		err = fmt.Errorf("child process has failed to set user password: %.300s", strings.TrimSpace(said.buf.String()))
	}
	return none{}, err
}

// maxKeys bounds a file of authorized keys, in bytes.
const maxKeys = 1 << 20

// keys are the lines of a user's authorized_keys, comments among them.
type keys struct {
	account runtime.Account
	file    string
	lines   []string
}

func (a *Agent) keys(ctx context.Context, user string) (k keys, err error) {
	if k.account, err = a.guest.Account(ctx, user); err != nil {
		return k, err
	}
	k.file = path.Join("/", k.account.Home, ".ssh/authorized_keys")
	body, err := a.guest.ReadFile(ctx, k.account.Owner, k.file, maxKeys)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	for line := range strings.Lines(string(body)) {
		k.lines = append(k.lines, strings.TrimSuffix(line, "\n"))
	}
	return k, err
}

func (a *Agent) saveKeys(ctx context.Context, k keys) (any, error) {
	body := strings.Join(k.lines, "\n") + "\n"
	if len(k.lines) == 0 {
		body = ""
	}
	if len(body) > maxKeys {
		return nil, fmt.Errorf("the keys are more than %d bytes", maxKeys)
	}
	return none{}, a.guest.ReplaceFile(ctx, k.account.Owner, k.file, []byte(body), 0o600)
}

type userArgs struct {
	User string `json:"username"`
}

func (a *Agent) getKeys(ctx context.Context, args userArgs) (any, error) {
	k, err := a.keys(ctx, args.User)
	list := []string{}
	for _, line := range k.lines {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			list = append(list, line)
		}
	}
	return map[string]any{"keys": list}, err
}

func (a *Agent) addKeys(ctx context.Context, args struct {
	userArgs
	Keys  []string `json:"keys"`
	Reset bool     `json:"reset"`
}) (any, error) {
	for _, key := range args.Keys {
		if strings.HasPrefix(key, "#") || strings.ContainsAny(key, "\n\r") {
			return nil, errors.New("a key is a comment or has a line break")
		}
	}
	k, err := a.keys(ctx, args.User)
	if err != nil {
		return nil, err
	}
	if args.Reset {
		k.lines = nil
	}
	for _, key := range args.Keys {
		if key != "" && !slices.Contains(k.lines, key) { // virsh takes the end of a file for one more
			k.lines = append(k.lines, key)
		}
	}
	return a.saveKeys(ctx, k)
}

func (a *Agent) removeKeys(ctx context.Context, args struct {
	userArgs
	Keys []string `json:"keys"`
}) (any, error) {
	k, err := a.keys(ctx, args.User)
	if err != nil {
		return nil, err
	}
	k.lines = slices.DeleteFunc(k.lines, func(line string) bool { return slices.Contains(args.Keys, line) })
	return a.saveKeys(ctx, k)
}
