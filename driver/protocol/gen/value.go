package main

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"regexp"
	"strings"
)

// A value is a C constant: its text in C, and what it comes to.
type value struct {
	expr string
	val  constant.Value
}

func (v value) num() int64 { n, _ := constant.Int64Val(v.val); return n }

var (
	suffix = regexp.MustCompile(`\b(0[xX][0-9a-fA-F]+|\d+)[uUlL]+\b`)
	oneBit = regexp.MustCompile(`^\(?1 << (\d+)\)?$`)
)

// eval computes a C constant expression; what it needs of C (integers, strings,
// operators, names) Go's own parser reads.
func eval(expr string, known map[string]value) (value, error) {
	expr = strings.TrimSpace(suffix.ReplaceAllString(expr, "$1"))
	tree, err := parser.ParseExpr(expr)
	if err != nil {
		return value{}, err
	}
	v, err := fold(tree, known)
	return value{expr, v}, err
}

func fold(e ast.Expr, known map[string]value) (constant.Value, error) {
	switch e := e.(type) {
	case *ast.BasicLit:
		return constant.MakeFromLiteral(e.Value, e.Kind, 0), nil
	case *ast.ParenExpr:
		return fold(e.X, known)
	case *ast.Ident:
		if v, ok := known[e.Name]; ok {
			return v.val, nil
		}
	case *ast.UnaryExpr:
		x, err := fold(e.X, known)
		if err != nil {
			return nil, err
		}
		return constant.UnaryOp(e.Op, x, 0), nil
	case *ast.BinaryExpr:
		x, err := fold(e.X, known)
		if err != nil {
			return nil, err
		}
		y, err := fold(e.Y, known)
		if err != nil {
			return nil, err
		}
		if e.Op == token.SHL {
			n, _ := constant.Uint64Val(y)
			return constant.Shift(x, e.Op, uint(n)), nil
		}
		return constant.BinaryOp(x, e.Op, y), nil
	}
	return nil, fmt.Errorf("not a constant expression")
}

// literal is the value in Go: single bits stay shifts, which read best.
func (v value) literal() string {
	if m := oneBit.FindStringSubmatch(v.expr); m != nil {
		return "1 << " + m[1]
	}
	if strings.HasPrefix(v.expr, "0x") {
		return v.expr
	}
	return v.val.ExactString()
}
