// Usage: GATEWAY_KEY=… go run go.go FILE
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

type job struct {
	ID   string `json:"id"`
	Code string `json:"code"`
	Name string `json:"name"`
}

var client = &http.Client{Timeout: 2 * time.Minute}

// call sends body as JSON, if there is one, and decodes the response into result.
func call(method, path string, body, result any) error {
	url := os.Getenv("GATEWAY_URL")
	if url == "" {
		url = "http://localhost:8080"
	}
	var sent io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		sent = bytes.NewReader(text)
	}
	request, err := http.NewRequest(method, url+path, sent)
	if err != nil {
		return err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if key := os.Getenv("GATEWAY_KEY"); key != "" {
		request.Header.Set("X-Cfproxy-Key", key)
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode >= 400 {
		text, _ := io.ReadAll(answer.Body)
		who := "the API"
		if strings.HasPrefix(answer.Header.Get("Proxy-Status"), "cfproxy") {
			who = "cfproxy"
		}
		return fmt.Errorf("%s answered %d: %s", who, answer.StatusCode, text)
	}
	return json.NewDecoder(answer.Body).Decode(result)
}

// listJobs reads all pages. They are numbered from 1; a page that is not full is the last one.
func listJobs(pageSize int) ([]job, error) {
	var jobs []job
	for number := 1; ; number++ {
		var page struct {
			PageData []job `json:"pageData"`
		}
		path := fmt.Sprintf("/v1/jobs?pageNumber=%d&pageSize=%d", number, pageSize)
		if err := call("GET", path, nil, &page); err != nil {
			return nil, err
		}
		jobs = append(jobs, page.PageData...)
		if len(page.PageData) < pageSize {
			return jobs, nil
		}
	}
}

// upload asks the API for an upload URL and sends the file there without the key.
func upload(path string) error {
	var slot struct {
		URL string `json:"url"`
	}
	name := map[string]string{"fileName": filepath.Base(path)}
	if err := call("POST", "/v1/assets/get-presigned-url", name, &slot); err != nil {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	request, err := http.NewRequest("PUT", slot.URL, file)
	if err != nil {
		return err
	}
	request.ContentLength = info.Size() // object stores refuse chunked uploads
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode >= 400 {
		return fmt.Errorf("the object store answered %s", answer.Status)
	}
	return nil
}

func main() {
	log.SetFlags(0)
	jobs, err := listJobs(25)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(jobs), "jobs")

	var one, changed job
	if err := call("GET", "/v1/jobs/"+jobs[0].ID, nil, &one); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %s\n", one.Code, one.Name)

	change := map[string]string{"name": one.Name + " é"}
	if err := call("PUT", "/v1/jobs/"+one.ID, change, &changed); err != nil {
		log.Fatal(err)
	}
	fmt.Println("renamed to", changed.Name)

	if err := upload(os.Args[1]); err != nil {
		log.Fatal(err)
	}
	fmt.Println("uploaded", filepath.Base(os.Args[1]))

	if err := call("GET", "/v1/jobs/00000000-0000-4000-8000-000000000000", nil, &one); err != nil {
		fmt.Printf("%v\nno such job\n", err)
	}
}
