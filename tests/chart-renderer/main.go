// Command chart-renderer does with a Helm chart what `helm template`, `helm lint` and
// `helm package` do, by Helm's own library, which builds in a fraction of the time of Helm.
//
//	chart-renderer template CHART [VALUES]   objects as YAML, in the order of installation
//	chart-renderer definitions CHART         the definitions that come with it
//	chart-renderer lint CHART [VALUES]       problems, one a line; exit code 1 if there are any
//	chart-renderer package CHART FOLDER      writes the archive, prints its path
//
// CHART is a folder or an archive, VALUES is YAML or JSON.
package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	"helm.sh/helm/v4/pkg/engine"
	release "helm.sh/helm/v4/pkg/release/v1/util"
)

// What is meant where no other namespace is given.
const ours = "sgp-system"

func main() {
	// That a link is followed is what is wanted.
	slog.SetLogLoggerLevel(slog.LevelWarn)
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) < 2 {
		return errors.New("usage: chart-renderer template|definitions|lint|package CHART [VALUES|FOLDER] [NAMESPACE]")
	}
	command, chart, rest, namespace := arguments[0], arguments[1], "", ours
	if len(arguments) > 2 {
		rest = arguments[2]
	}
	if len(arguments) > 3 {
		namespace = arguments[3]
	}
	switch command {
	case "template":
		return template(chart, rest, namespace)
	case "definitions":
		return definitions(chart)
	case "lint":
		return lintAll(chart, rest)
	case "package":
		return pack(chart, rest)
	}
	return fmt.Errorf("unknown command %q", command)
}

func template(path, values, namespace string) error {
	chart, err := loader.Load(path)
	if err != nil {
		return err
	}
	given, err := common.ReadValues([]byte(values))
	if err != nil {
		return err
	}
	options := common.ReleaseOptions{Name: "sgp", Namespace: namespace, Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(chart, given, options, nil)
	if err != nil {
		return err
	}
	rendered, err := engine.Engine{}.Render(chart, all)
	if err != nil {
		return err
	}
	// What is told to people is no manifest.
	maps.DeleteFunc(rendered, func(name, _ string) bool { return strings.HasSuffix(name, ".txt") })
	_, manifests, err := release.SortManifests(rendered, nil, release.InstallOrder)
	if err != nil {
		return err
	}
	for _, manifest := range manifests {
		fmt.Printf("---\n%s\n", manifest.Content)
	}
	return nil
}

func definitions(path string) error {
	chart, err := loader.Load(path)
	if err != nil {
		return err
	}
	for _, definition := range chart.CRDObjects() {
		fmt.Printf("---\n%s\n", definition.File.Data)
	}
	return nil
}

func lintAll(chart, values string) error {
	given, err := common.ReadValues([]byte(values))
	if err != nil {
		return err
	}
	found := lint.RunAll(chart, given, ours)
	for _, message := range found.Messages {
		// An icon is a matter of taste.
		if message.Severity > support.InfoSev {
			fmt.Println(message)
			err = errors.New("problems were found")
		}
	}
	return err
}

func pack(path, folder string) error {
	chart, err := loader.LoadDir(path)
	if err != nil {
		return err
	}
	archive, err := chartutil.Save(chart, folder)
	if err != nil {
		return err
	}
	fmt.Println(archive)
	return nil
}
