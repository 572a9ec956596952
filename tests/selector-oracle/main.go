// Command selector-oracle answers what Kubernetes itself makes of a label selector.
//
// Each line of standard input is a question, a selector and the labels of one object:
//
//	{"selector": {"matchLabels": {"app": "db"}}, "labels": {"app": "db"}}
//
// and each line of standard output is the answer to the question in the same place:
//
//	{"valid": true, "matches": true}
//
// It only forwards to apimachinery. A rule written down here would be ours, and no oracle.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

type question struct {
	Selector metav1.LabelSelector `json:"selector"`
	Labels   labels.Set           `json:"labels"`
}

type answer struct {
	Valid   bool `json:"valid"`
	Matches bool `json:"matches"`
	// Error says why the selector is not valid.
	Error string `json:"error,omitempty"`
}

func main() {
	if err := answerAll(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "selector-oracle:", err)
		os.Exit(1)
	}
}

func answerAll(in io.Reader, out io.Writer) error {
	questions := json.NewDecoder(bufio.NewReader(in))
	// A misspelt field would turn a selector into one that selects everything.
	questions.DisallowUnknownFields()
	buffered := bufio.NewWriter(out)
	answers := json.NewEncoder(buffered)

	for number := 1; ; number++ {
		var q question
		if err := questions.Decode(&q); errors.Is(err, io.EOF) {
			return buffered.Flush()
		} else if err != nil {
			return fmt.Errorf("question %d: %w", number, err)
		}
		if err := answers.Encode(ask(&q)); err != nil {
			return fmt.Errorf("answer %d: %w", number, err)
		}
	}
}

func ask(q *question) answer {
	selector, err := metav1.LabelSelectorAsSelector(&q.Selector)
	if err != nil {
		return answer{Error: err.Error()}
	}
	return answer{Valid: true, Matches: selector.Matches(q.Labels)}
}
