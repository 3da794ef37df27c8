package e2e

import "fmt"

// figure is a measured value, which the run prints at its end.
type figure struct{ what, value string }

var figures []figure

// record adds a measured value. Tests run one after the other.
func record(what string, value any) {
	figures = append(figures, figure{what, fmt.Sprint(value)})
}

func printFigures() {
	if len(figures) == 0 {
		return
	}
	fmt.Println("\nFigures of this run:")
	for _, f := range figures {
		fmt.Printf("  %-75s %s\n", f.what, f.value)
	}
}
