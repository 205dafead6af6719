// Bundles each entry, src/<name>.ts, into one ES module, <name>.js (and <name>.css where it imports a style sheet).
// Usage: node build.mjs [FOLDER]; scripts/widgets.py calls it, for the build hook and for make.
import { build } from "esbuild";

/** One a widget. */
const entries = ["batch", "session", "workers", "brokers", "events", "runs", "queues"];

await build({
  absWorkingDir: import.meta.dirname,
  entryPoints: entries.map((name) => `src/${name}.ts`),
  outdir: process.argv[2] ?? "dist",
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  legalComments: "none",
  logLevel: "warning",
});
