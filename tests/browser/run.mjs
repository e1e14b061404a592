// Starts the browser, runs one script in it, and prints what the script returned as one line of JSON.
//
// Standard input: {"script": path, "executable": path, "args": […], "input": …}.
// The script is a module whose default export is called as `script({ browser, context, page, input })`.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const job = JSON.parse(readFileSync(0, "utf8"));
const { default: script } = await import(pathToFileURL(job.script).href);
const browser = await chromium.launch({ executablePath: job.executable, args: job.args });
try {
  const context = await browser.newContext();
  const page = await context.newPage();
  const value = await script({ browser, context, page, input: job.input });
  process.stdout.write(JSON.stringify(value ?? null) + "\n");
} finally {
  await browser.close();
}
