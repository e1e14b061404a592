// Opens a page, lets it do all its tricks to `target`, and gives back what the page got to see.

import { fileURLToPath } from "node:url";

export default async ({ context, page, input }) => {
  if (input.planted) {
    // Rebinding: the name led to the attacker's server when the page came, and leads here ever since.
    await page.route(input.page, (route) => route.fulfill({ contentType: "text/html", body: input.planted }));
  }
  await page.goto(input.page);
  await page.addScriptTag({ path: fileURLToPath(new URL("tricks.js", import.meta.url)) });
  const seen = await page.evaluate((target) => window.tryAll(target), input.target);
  // Answers once everything has arrived: some of it goes out on its own time.
  await (await context.newPage()).goto(`${input.settled}?${Object.keys(seen)}`);
  return seen;
};
