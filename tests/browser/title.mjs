export default async ({ page, input }) => {
  await page.goto(input.url);
  return { host: await page.evaluate("location.hostname"), title: await page.title() };
};
