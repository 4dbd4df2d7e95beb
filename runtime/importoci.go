package runtime

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// The layout is read here and not by go-containerregistry: its pkg/v1/layout
// reads index and manifests whole, however large, and does not hold them
// against their digests, of which one becomes the generation's. Its
// mutate.Extract keeps every name of every layer in memory, leaves out links
// that it finds unsafe, and going from the top layer down it gives a hard link
// before the file of a lower layer that it links to.

// Bounds of the descriptions of an image.
const (
	maxOCIDocument = 4 << 20
	maxOCILayers   = 256
	maxOCINesting  = 4 // indexes of indexes
)

// importOCI unpacks the layers of an image, one over the other, into
// dir/rootfs. where is the directory of an OCI image layout, and ":TAG" where
// it has several images (org.opencontainers.image.ref.name).
func importOCI(ctx context.Context, where, dir string, o ImportOptions) (Generation, error) {
	made := Generation{Source: OCIPrefix + absolute(where)}
	image, err := openOCI(where)
	if err != nil {
		return made, err
	}
	var total int64
	for _, layer := range image.manifest.Layers {
		total += layer.Size
	}
	u, err := newUnpacker(filepath.Join(dir, "rootfs"), o.Limits)
	if err != nil {
		return made, err
	}
	defer u.close()
	before := int64(0)
	for n, layer := range image.manifest.Layers {
		u.layer = map[string]bool{}
		at := func(done, _ int64) { o.progress(before+done, total) }
		if err := image.unpackLayer(ctx, layer, u, at); err != nil {
			return made, fmt.Errorf("layer %d of %d: %w", n+1, len(image.manifest.Layers), err)
		}
		before += layer.Size
	}
	// What a manifest names, it names by digest.
	made.Digest = "sha256-" + image.digest.Encoded()
	return made, u.finish(ctx, &made)
}

// ociImage is one image of a layout.
type ociImage struct {
	dir      string
	digest   digest.Digest
	manifest v1.Manifest
}

func openOCI(where string) (*ociImage, error) {
	dir, tag := where, ""
	if _, err := os.Stat(filepath.Join(where, v1.ImageLayoutFile)); errors.Is(err, fs.ErrNotExist) {
		if colon := strings.LastIndexByte(where, ':'); colon > strings.LastIndexByte(where, '/') {
			dir, tag = where[:colon], where[colon+1:]
		}
	}
	var layout v1.ImageLayout
	if err := readDocument(filepath.Join(dir, v1.ImageLayoutFile), &layout); err != nil {
		return nil, fmt.Errorf("%s is no OCI image layout: %w", dir, err)
	}
	if layout.Version != v1.ImageLayoutVersion {
		return nil, fmt.Errorf("the image layout has version %q, only %s is known", printable(layout.Version, 64), v1.ImageLayoutVersion)
	}
	var index v1.Index
	if err := readDocument(filepath.Join(dir, v1.ImageIndexFile), &index); err != nil {
		return nil, err
	}
	image := &ociImage{dir: dir}
	chosen, err := chooseTag(index.Manifests, tag)
	if err != nil {
		return nil, err
	}
	return image, image.resolve(chosen, 0)
}

func readDocument(name string, into any) error {
	f, _, err := openSource(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := json.NewDecoder(io.LimitReader(f, maxOCIDocument)).Decode(into); err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(name), err)
	}
	return nil
}

// chooseTag wants one image: the only one, or that of the tag.
func chooseTag(list []v1.Descriptor, tag string) (v1.Descriptor, error) {
	var tags []string
	for _, d := range list {
		name := d.Annotations[v1.AnnotationRefName]
		if tag != "" && name == tag {
			return d, nil
		}
		tags = append(tags, printable(name, 64))
	}
	switch {
	case len(list) == 0:
		return v1.Descriptor{}, errors.New("the layout has no image")
	case tag != "":
		return v1.Descriptor{}, fmt.Errorf("the layout has no image %q; there are %s", tag, strings.Join(tags, ", "))
	case len(list) > 1:
		return v1.Descriptor{}, fmt.Errorf("the layout has several images, name one as oci:DIR:TAG; there are %s", strings.Join(tags, ", "))
	}
	return list[0], nil
}

// resolve follows indexes to the manifest for this machine.
func (i *ociImage) resolve(d v1.Descriptor, nested int) error {
	if nested > maxOCINesting {
		return errors.New("the image's indexes are nested too deep")
	}
	var both struct { // a manifest has layers, an index manifests
		v1.Manifest
		Manifests []v1.Descriptor `json:"manifests"`
	}
	body, err := i.read(d)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, &both); err != nil {
		return fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	if len(both.Manifests) == 0 {
		if n := len(both.Layers); n == 0 || n > maxOCILayers {
			return fmt.Errorf("the image has %d layers: 1 to %d are possible", n, maxOCILayers)
		}
		i.digest, i.manifest = d.Digest, both.Manifest
		return nil
	}
	fits := func(m v1.Descriptor) bool {
		return m.Platform == nil || m.Platform.OS == "linux" && m.Platform.Architecture == goruntime.GOARCH
	}
	at := slices.IndexFunc(both.Manifests, fits)
	if at < 0 {
		return fmt.Errorf("the image is not for linux/%s", goruntime.GOARCH)
	}
	return i.resolve(both.Manifests[at], nested+1)
}

// read returns a blob that is a document. Only whose end was read is what its
// digest says.
func (i *ociImage) read(d v1.Descriptor) ([]byte, error) {
	blob, err := i.open(d)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	body, err := io.ReadAll(io.LimitReader(blob, maxOCIDocument+1))
	if err == nil && len(body) > maxOCIDocument {
		err = fmt.Errorf("blob %s is too large: a manifest has at most %d MiB", d.Digest, maxOCIDocument>>20)
	}
	return body, err
}

// open opens a blob. What is read of it is checked: reading fails at its end
// unless it has the size and the digest that it should have.
func (i *ociImage) open(d v1.Descriptor) (io.ReadCloser, error) {
	if err := d.Digest.Validate(); err != nil || d.Digest.Algorithm() != digest.SHA256 {
		return nil, fmt.Errorf("digest %q is not understood: sha256 is known", printable(string(d.Digest), 80))
	}
	f, size, err := openSource(filepath.Join(i.dir, v1.ImageBlobsDir, "sha256", d.Digest.Encoded()))
	if err == nil && size != d.Size {
		f.Close()
		err = errors.New("it has not the size that the image says")
	}
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	return &checkedBlob{f, f, d.Digest.Verifier(), d}, nil
}

type checkedBlob struct {
	io.Closer
	r        io.Reader
	verifier digest.Verifier
	d        v1.Descriptor
}

func (b *checkedBlob) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.verifier.Write(p[:n])
	if err == io.EOF && !b.verifier.Verified() {
		err = fmt.Errorf("blob %s is damaged: its content has another digest", b.d.Digest)
	}
	return n, err
}

func (i *ociImage) unpackLayer(ctx context.Context, d v1.Descriptor, u *unpacker, progress func(done, total int64)) error {
	if strings.Contains(d.MediaType, "encrypted") {
		return errors.New("it is encrypted")
	}
	blob, err := i.open(d)
	if err != nil {
		return err
	}
	defer blob.Close()
	whole := bufio.NewReader(&countingReader{ctx: ctx, r: blob, total: d.Size, progress: progress})
	if err := u.unpackStream(whole, io.Discard); err != nil {
		return err
	}
	// The end of the compressed stream may not be the end of the blob.
	if _, err = io.Copy(io.Discard, whole); err != nil {
		return err
	}
	return u.endLayer()
}
