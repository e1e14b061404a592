# Usage: GATEWAY_KEY=… Rscript r.R FILE      (needs httr2)
library(httr2)

url <- Sys.getenv("GATEWAY_URL", "http://localhost:8080")
key <- Sys.getenv("GATEWAY_KEY")

call <- function(path, method = "GET", json = NULL, query = list()) {
  request <- request(url) |> req_url_path_append(path) |> req_method(method) |> req_timeout(120) |>
    req_url_query(!!!query) |> req_error(is_error = \(answer) FALSE)
  if (key != "") request <- request |> req_headers("X-Cfproxy-Key" = key)
  if (!is.null(json)) request <- request |> req_body_json(json)
  answer <- req_perform(request)
  if (resp_status(answer) >= 400) {
    ours <- startsWith(paste0(resp_header(answer, "Proxy-Status"), ""), "cfproxy")
    stop(if (ours) "cfproxy" else "the API", " answered ", resp_status(answer), ": ",
         resp_body_string(answer), call. = FALSE)
  }
  resp_body_json(answer)
}

# Pages are numbered from 1; a page that is not full is the last one.
list_jobs <- function(page_size = 25) {
  jobs <- list()
  number <- 1
  repeat {
    page <- call("/v1/jobs", query = list(pageNumber = number, pageSize = page_size))$pageData
    jobs <- c(jobs, page)
    if (length(page) < page_size) return(jobs)
    number <- number + 1
  }
}

# Ask the API for an upload URL; send the file there without the key.
upload <- function(path) {
  slot <- call("/v1/assets/get-presigned-url", "POST", list(fileName = basename(path)))
  request(slot$url) |> req_method("PUT") |> req_body_file(path) |> req_perform()
}

jobs <- list_jobs()
cat(length(jobs), "jobs\n")

job <- call(paste0("/v1/jobs/", jobs[[1]]$id))
cat(job$code, ": ", job$name, "\n", sep = "")

changed <- call(paste0("/v1/jobs/", job$id), "PUT", list(name = paste(job$name, "\u00e9")))
cat("renamed to", changed$name, "\n")

file <- commandArgs(trailingOnly = TRUE)[[1]]
invisible(upload(file))
cat("uploaded", basename(file), "\n")

tryCatch(
  call("/v1/jobs/00000000-0000-4000-8000-000000000000"),
  error = \(problem) cat(conditionMessage(problem), "\nno such job\n")
)
