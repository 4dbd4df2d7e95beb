package protocol

import "testing"

func TestUUID(t *testing.T) {
	const canonical = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
	for _, s := range []string{canonical, "4DEA22B31D52D8F32516782E98AB3FA0", " \n4d ea22b3-1d52-d8f3-2516-782e98ab3fa0\t"} {
		u, err := ParseUUID(s)
		if err != nil || u.String() != canonical {
			t.Errorf("%q: %v %v", s, u, err)
		}
	}
	for _, s := range []string{"", canonical[1:], canonical + "0", canonical + "-", "4d-e-" + canonical[3:], "4dea22b3_1d52-d8f3-2516-782e98ab3fa0", canonical[:35] + "g"} {
		if u, err := ParseUUID(s); err == nil || u != (UUID{}) {
			t.Errorf("%q is taken as %v", s, u)
		}
	}
}
