package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	_ "gonum.org/v1/plot/vg/vgsvg" // the format
)

// charts are the figures over the number of exports, and the files into which they are drawn.
var charts = []struct {
	file  string
	title string
	y     string
	of    func(convergeRun) float64
	limit bool // also draws the bare client
}{
	{"converge.svg", "Exports until Ready", "objects per second", func(r convergeRun) float64 { return r.PerSecond }, true},
	{"memory.svg", "Peak resident memory of the operator", "MiB", func(r convergeRun) float64 { return r.PeakMiB }, false},
}

const chartUsage = "bench chart DIRECTORY FILE.json …"

// chart draws the results of several runs with different numbers of exports.
func chart(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: " + chartUsage)
	}
	var reports []report
	for _, path := range args[1:] {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var r report
		if err := json.Unmarshal(text, &r); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		reports = append(reports, r)
	}
	for _, c := range charts {
		lines := linesOf(reports, c.of)
		if c.limit {
			for _, r := range reports {
				if objects, mean := r.meanLimit(); objects > 0 {
					lines["bare client"] = append(lines["bare client"], plotter.XY{X: float64(objects), Y: mean})
				}
			}
		}
		if err := draw(c.title, c.y, lines, args[0]+"/"+c.file); err != nil {
			return fmt.Errorf("%s: %w", c.file, err)
		}
	}
	return nil
}

// linesOf returns a figure by store, for exports with an inline public key and the first algorithm.
func linesOf(reports []report, of func(convergeRun) float64) map[string]plotter.XYs {
	lines := map[string]plotter.XYs{}
	for _, r := range reports {
		for _, run := range r.Converge {
			if run.PublicKey == inline && run.Algorithm == r.Converge[0].Algorithm {
				lines[run.Store] = append(lines[run.Store], plotter.XY{X: float64(run.Objects), Y: of(run)})
			}
		}
	}
	return lines
}

// meanLimit returns the mean of all runs of the bare client at the best concurrency, and their number of objects.
func (r *report) meanLimit() (objects int, perSecond float64) {
	best, runs := r.bestLimit(), 0.0
	for _, run := range r.Limit {
		if run.Write == best.Write && run.Concurrency == best.Concurrency {
			perSecond += run.PerSecond
			runs++
		}
	}
	return best.Objects, perSecond / max(runs, 1)
}

func draw(title, y string, lines map[string]plotter.XYs, path string) error {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, "ExportedDataKeys", y
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	p.Legend.Top = true
	p.Add(plotter.NewGrid())
	top := 0.0
	var named []any
	for _, name := range sorted(lines) {
		points := lines[name]
		slices.SortFunc(points, func(a, b plotter.XY) int { return int(a.X - b.X) })
		for _, point := range points {
			top = max(top, point.Y)
		}
		named = append(named, name, points)
	}
	if err := plotutil.AddLinePoints(p, named...); err != nil {
		return err
	}
	p.Y.Min, p.Y.Max, p.X.Max = 0, math.Ceil(top*1.5/100)*100, p.X.Max*1.5 // room for the legend, and for the last number
	p.Legend.XOffs = -vg.Centimeter
	return p.Save(16*vg.Centimeter, 10*vg.Centimeter, path)
}
