// Opens a page, runs all its tricks against `target`, and returns what the page could see.

import { fileURLToPath } from "node:url";

export default async ({ context, page, input }) => {
  if (input.planted) {
    // Rebinding: the name resolved to the attacker's server when the page loaded, and resolves to us since.
    await page.route(input.page, (route) => route.fulfill({ contentType: "text/html", body: input.planted }));
  }
  await page.goto(input.page);
  await page.addScriptTag({ path: fileURLToPath(new URL("tricks.js", import.meta.url)) });
  const seen = await page.evaluate((target) => window.tryAll(target), input.target);
  // Responds once everything has arrived: some requests are sent later.
  await (await context.newPage()).goto(`${input.settled}?${Object.keys(seen)}`);
  return seen;
};
