// Logs in on the page, watches it update, takes screenshots in every appearance, and runs axe.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const LOOKS = {
  light: { colorScheme: "light", viewport: { width: 1280, height: 860 } },
  dark: { colorScheme: "dark", viewport: { width: 1280, height: 860 } },
  narrow: { colorScheme: "light", viewport: { width: 360, height: 760 } },
};

async function violations(browser, url, look, dead = false) {
  // axe creates markup in its own elements, which the page's policy forbids.
  const context = await browser.newContext({ ...LOOKS[look], bypassCSP: true, reducedMotion: "reduce" });
  const page = await context.newPage();
  if (dead) await page.route("**/events*", (route) => route.abort());
  await page.goto(url);
  if (dead) await page.locator("body.stale").waitFor();
  await page.evaluate(AXE);
  const found = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
  await context.close();
  return found.violations.map((each) => `${look} ${url}: ${each.id}: ${each.nodes.map((n) => n.html).join(" ")}`);
}

async function logIn(context, page, url) {
  await page.goto(url);
  const before = await page.locator("h1").innerText();
  await page.getByRole("link", { name: "Log in" }).click();
  const [consent] = await Promise.all([
    context.waitForEvent("page"),
    page.getByRole("button", { name: "Log in to Creative Force" }).click(),
  ]);
  await consent.getByRole("button", { name: "Yes, Allow" }).click();
  await consent.waitForLoadState();
  return { before, consent };
}

export default async ({ browser, context, page, input }) => {
  const errors = [];
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(String(error)));
  const seen = { errors };

  // --- a login, pasted or forwarded ---------------------------------------------------------
  const { before, consent } = await logIn(context, page, input.url);
  seen.before = before;
  if (input.forwarded) {
    await consent.getByText("is logged in").waitFor();
    seen.opener = await consent.evaluate(() => window.opener === null);
  } else {
    const address = await consent.locator("pre").innerText();
    await page.getByLabel("The full address").fill("https://nowhere.example/?code=12345678&state=x");
    await page.getByRole("button", { name: "Finish the login" }).click();
    seen.alert = await page.getByRole("alert").innerText();
    seen.refused = errors.splice(0); // the browser logs the status
    await page.getByLabel("The full address").fill(address);
    await page.getByRole("button", { name: "Finish the login" }).click();
  }
  await page.getByText("Logged in just now").waitFor();
  if (!input.shots) return seen;

  // --- live ---------------------------------------------------------------------------------
  await page.getByRole("link", { name: "See the status page" }).click();
  await page.locator("#live[data-tone=good]").waitFor();
  seen.after = await page.locator("h1").innerText();
  const bar = page.getByRole("progressbar", { name: "default Access token" });
  const left = () => bar.evaluate((element) => element.value);
  const line = () => page.locator("[data-path=rate_line]").getAttribute("d");
  const [leftBefore, lineBefore] = [await left(), await line()];
  await page.evaluate(() => { window.sameDocument = true; });
  await fetch(`${input.proxy}/v1/jobs?pageSize=1&marker=query`);
  const row = page.getByRole("row").filter({ hasText: "GET /v1/jobs" });
  await row.first().waitFor();
  seen.row = await row.first().innerText();
  await page.waitForFunction((earlier) => document.querySelector("[data-path=rate_line]").getAttribute("d") !== earlier, lineBefore);
  await page.waitForFunction((earlier) => document.querySelector("#account-default progress").value < earlier, leftBefore);
  seen.reloaded = !(await page.evaluate(() => window.sameDocument === true));

  // --- by keyboard --------------------------------------------------------------------------
  await page.goto(input.url);
  seen.focused = [];
  for (let step = 0; step < 5; step += 1) {
    await page.keyboard.press("Tab");
    seen.focused.push(await page.evaluate(() => document.activeElement.textContent.trim().slice(0, 20)));
  }

  // --- every appearance ---------------------------------------------------------------------
  for (let count = 0; count < 12; count += 1) {
    await fetch(`${input.proxy}${["/v1/jobs", "/v1/productiontypes", "/v1/_bytes/5000"][count % 3]}`);
  }
  await fetch(`${input.proxy}/v1/workunits/unknown`);
  await fetch(`${input.proxy}/v1/_echo/assets/get-presigned-url`, { method: "POST", body: "{}" });
  seen.widths = {};
  for (const [name, options] of Object.entries(LOOKS)) {
    const looking = await browser.newContext({ ...options, reducedMotion: "reduce" });
    const shown = await looking.newPage();
    for (const [file, path] of [["status", "/"], ["login", "/login?account=default"]]) {
      await shown.goto(`${input.url}${path}`);
      await shown.locator("#live[data-tone=good]").waitFor();
      await shown.screenshot({ path: `${input.shots}/${file}-${name}.png` });
      seen.widths[`${file}-${name}`] = await shown.evaluate(() => document.documentElement.scrollWidth <= innerWidth);
    }
    await looking.close();
  }
  seen.violations = [];
  for (const look of Object.keys(LOOKS)) {
    for (const path of ["/", "/login", "/callback?state=x&code=12345678", "/login?account=7"]) {
      seen.violations.push(...(await violations(browser, `${input.url}${path}`, look)));
    }
    if (look !== "narrow") seen.violations.push(...(await violations(browser, input.url, look, true)));
  }

  // --- without a script ---------------------------------------------------------------------
  const plain = await browser.newContext({ javaScriptEnabled: false });
  const still = await plain.newPage();
  await still.goto(input.url);
  seen.still = await still.locator("h1").innerText();
  await still.getByRole("link", { name: "Log in again" }).click();
  const [unscripted] = await Promise.all([
    plain.waitForEvent("page"),
    still.getByRole("button", { name: "Log in to Creative Force" }).click(),
  ]);
  await unscripted.getByRole("button", { name: "Yes, Allow" }).waitFor();
  await plain.close();

  // --- when it ends -------------------------------------------------------------------------
  await page.goto(input.url);
  await page.locator("#live[data-tone=good]").waitFor();
  const errorsBefore = errors.length;
  await fetch(`${input.url}/shutdown`, { method: "POST", headers: { "X-Cfproxy-Admin": "1" } });
  await page.locator("#live[data-tone=bad]").waitFor();
  seen.ended = await page.locator("#live").innerText();
  seen.endedTitle = await page.title();
  errors.length = errorsBefore; // the browser logs failed connections
  return seen;
};
