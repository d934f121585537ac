/* The text format of Prometheus (0.0.4): as much of it as a glance needs. */

/* [{name, labels, value}] */
export function parseMetrics(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match) {
      continue;
    }
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    }
    samples.push({name: match[1], labels, value: Number(match[3].replace("Inf", "Infinity"))});
  }
  return samples;
}

export function total(samples, name, accept = () => true) {
  return samples.reduce((sum, sample) => (sample.name === name && accept(sample.labels) ? sum + sample.value : sum), 0);
}
