//go:build vm

package migrate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// certify makes an authority and, in a directory for each host, what it needs:
// certify pki a b
func certify(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: certify DIR HOST…")
	}
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: args[0]}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	key := newKey(ts)
	ca := sign(ts, authority, authority, key, key)
	for n, host := range args[1:] {
		dir := ts.MkAbs(filepath.Join(args[0], host))
		ts.Check(os.MkdirAll(dir, 0o700))
		writePEM(ts, dir, "cacert.pem", "CERTIFICATE", ca)
		for k, side := range []string{"client", "server"} {
			own := newKey(ts)
			cert := &x509.Certificate{
				SerialNumber: big.NewInt(int64(2 + 2*n + k)), Subject: pkix.Name{CommonName: host},
				DNSNames: []string{host, "alias-" + host}, IPAddresses: []net.IP{net.ParseIP(addresses[host])},
				NotBefore: authority.NotBefore, NotAfter: authority.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
				ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
			}
			writePEM(ts, dir, side+"cert.pem", "CERTIFICATE", sign(ts, cert, authority, own, key))
			body, err := x509.MarshalPKCS8PrivateKey(own)
			ts.Check(err)
			writePEM(ts, dir, side+"key.pem", "PRIVATE KEY", body)
		}
	}
}

func newKey(ts *testscript.TestScript) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	return key
}

func sign(ts *testscript.TestScript, cert, by *x509.Certificate, own, key *ecdsa.PrivateKey) []byte {
	body, err := x509.CreateCertificate(rand.Reader, cert, by, own.Public(), key)
	ts.Check(err)
	return body
}

func writePEM(ts *testscript.TestScript, dir, name, kind string, body []byte) {
	ts.Check(os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: body}), 0o600))
}
