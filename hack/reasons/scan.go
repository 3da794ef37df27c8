package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// sources holds the reasons and events that the code contains.
type sources struct {
	constants map[string]string   // the comments of the constants Reason…, by value
	values    map[string]string   // values by the names of the constants
	classes   map[string][]string // the classes of the errors with the reason
	events    map[string]string   // the types of events, by reason
}

func scan(root string) (*sources, error) {
	s := &sources{map[string]string{}, map[string]string{}, map[string][]string{}, map[string]string{}}
	for _, part := range []struct {
		dir   string
		visit func(ast.Node) bool
	}{
		{"api/v1alpha1", s.visitConstants},
		{"internal/reconciler", s.visitUses},
		{"controllers", s.visitUses},
		{"internal/keystore", s.visitReasons},
	} {
		files, err := filepath.Glob(filepath.Join(root, part.dir, "*.go"))
		if err != nil {
			return nil, err
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("no sources in %s: run it in the root of the repository", part.dir)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
			if err != nil {
				return nil, err
			}
			ast.Inspect(file, part.visit)
		}
	}
	for _, classes := range s.classes {
		slices.Sort(classes)
	}
	return s, nil
}

// visitConstants collects the constants Reason… and their comments after the colon.
func (s *sources) visitConstants(n ast.Node) bool {
	spec, ok := n.(*ast.ValueSpec)
	if !ok || len(spec.Names) != 1 || !strings.HasPrefix(spec.Names[0].Name, "Reason") || len(spec.Values) != 1 {
		return true
	}
	if value, ok := text(spec.Values[0]); ok {
		_, comment, _ := strings.Cut(strings.Join(strings.Fields(spec.Doc.Text()), " "), ": ")
		s.constants[value], s.values[spec.Names[0].Name] = capital(comment), value
	}
	return true
}

// visitUses collects the classes of the errors with each reason, and the events.
func (s *sources) visitUses(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.CallExpr:
		switch name := called(n.Fun); {
		case (name == "Stall" || name == "Wait") && len(n.Args) == 2:
			s.addClass(n.Args[0], map[string]string{"Stall": "Terminal", "Wait": "Waiting"}[name])
		case name == "Eventf" && len(n.Args) > 3:
			s.addEvent(n.Args[2], n.Args[3])
		}
	case *ast.CompositeLit:
		fields := fieldsOf(n)
		switch called(n.Type) {
		case "Error":
			s.addClass(fields["Reason"], called(fields["Class"]))
		case "Event", "": // "" is an element of a []Event
			if fields["Type"] != nil && fields["Reason"] != nil {
				s.addEvent(fields["Type"], fields["Reason"])
			}
		}
	}
	return true
}

// visitReasons keeps the reasons of errors that name what an object waits for: those that methods Reason return.
func (s *sources) visitReasons(n ast.Node) bool {
	method, ok := n.(*ast.FuncDecl)
	if !ok || method.Name.Name != "Reason" {
		return true
	}
	ast.Inspect(method, func(n ast.Node) bool {
		if e, ok := n.(*ast.SelectorExpr); ok {
			s.addClass(e, "Waiting")
		}
		return true
	})
	return false
}

func fieldsOf(n *ast.CompositeLit) map[string]ast.Expr {
	fields := map[string]ast.Expr{}
	for _, e := range n.Elts {
		if kv, ok := e.(*ast.KeyValueExpr); ok {
			fields[called(kv.Key)] = kv.Value
		}
	}
	return fields
}

func (s *sources) addClass(reason ast.Expr, class string) {
	value, ok := s.values[called(reason)]
	if ok && !slices.Contains(s.classes[value], class) {
		s.classes[value] = append(s.classes[value], class)
	}
}

// addEvent keeps an event whose reason is written out. (Those of a stall are the condition's.)
func (s *sources) addEvent(kind, reason ast.Expr) {
	value, ok := text(reason)
	if !ok {
		return
	}
	is := strings.TrimPrefix(called(kind), "EventType")
	if is != "Normal" && is != "Warning" {
		is = "Normal or Warning"
	}
	s.events[value] = is
}

// called is the last name of an expression: Stall of reconciler.Stall.
func called(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

func text(e ast.Expr) (string, bool) {
	literal, ok := e.(*ast.BasicLit)
	if !ok || literal.Kind != token.STRING {
		return "", false
	}
	value, err := strconv.Unquote(literal.Value)
	return value, err == nil
}

func capital(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
