// Opens a page that makes the browser fetch `target` ahead in every way, and then, if asked, follows a link.

const WAYS = {
  "link-prefetch": { rel: "prefetch" },
  "link-document": { rel: "prefetch", as: "document" },
  "link-prerender": { rel: "prerender" }, // Chromium has retired it
  "rules-prefetch": { prefetch: {} },
  "rules-no-referrer": { prefetch: { referrer_policy: "no-referrer" } },
  "rules-prerender": { prerender: {} },
};

export default async ({ page, input }) => {
  await page.goto(input.page);
  const supported = await page.evaluate(
    ({ ways, target }) => {
      for (const [name, way] of Object.entries(ways)) {
        const href = `${target}/${name}`;
        if (way.rel) {
          document.head.append(Object.assign(document.createElement("link"), { ...way, href }));
          continue;
        }
        const [[kind, options]] = Object.entries(way);
        const rule = { urls: [href], eagerness: "immediate", ...options };
        const text = JSON.stringify({ [kind]: [rule] });
        document.head.append(Object.assign(document.createElement("script"), { type: "speculationrules", text }));
      }
      return HTMLScriptElement.supports("speculationrules");
    },
    { ways: WAYS, target: input.target },
  );
  // Responds once the requests have arrived. The browser sends them when it is idle, and none for a hidden page.
  const expected = Object.keys(WAYS).filter((name) => name !== "link-prerender");
  await page.request.get(`${input.settled}?${expected}`);
  if (!input.then) return { supported, expected };
  await page.evaluate((url) => document.body.append(Object.assign(document.createElement("a"), { href: url, text: "go" })), input.then);
  const [response] = await Promise.all([page.waitForResponse(input.then), page.getByText("go").click()]);
  return { supported, expected, then: response.status() };
};
