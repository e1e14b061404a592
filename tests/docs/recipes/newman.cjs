// Runs a collection as `newman run` does, and ends when it is done: newman's own command sometimes does not.
// Words: the collection, the working directory, the environment.
const newman = require("newman");

const [collection, workingDir, environment] = process.argv.slice(2);
const reporter = { cli: { noBanner: true } };
const options = { collection, environment, workingDir, reporters: "cli", reporter, color: "off", disableUnicode: true };
newman.run(options, (error, summary) => {
  if (error) console.error(error.message);
  process.exit(error || summary.run.failures.length > 0 ? 1 : 0);
});
