// Package offline works on the data directories of servers that do not run: it
// restores a backup into them, and verifies what they hold. It talks to nobody
// and, when it verifies, changes nothing.
package offline
