/* The views, one row each: the pattern of its place (after #), its link in the bar (if it has one), and its module.
 *
 * A module exports show(main, context): it fills main, and everything that it starts ends with context.signal.
 *   context.args     what the pattern's groups matched
 *   context.query    URLSearchParams of the place
 *   context.signal   AbortSignal: another view is shown
 *   context.title    (text) => the document's title */
export const VIEWS = [
  {pattern: /^\/?$/, link: {href: "#/", label: "Queue"}, load: () => import("./queue.js")},
  {pattern: /^\/jobs\/(job_[0-9A-Z]{26})$/, part: "#/", load: () => import("./job.js")},
  {pattern: /^\/jobs\/(job_[0-9A-Z]{26})\/calibration$/, part: "#/", load: () => import("./calibration.js")},
  {pattern: /^\/new$/, link: {href: "#/new", label: "New job"}, load: () => import("./new_job.js")},
  {pattern: /^\/compare$/, link: {href: "#/compare", label: "Compare"}, load: () => import("./compare.js")},
  {pattern: /^\/artifacts$/, link: {href: "#/artifacts", label: "Artifacts"}, load: () => import("./artifacts.js")},
  {pattern: /^\/artifacts\/(art_[0-9A-Z]{26})$/, part: "#/artifacts", load: () => import("./artifact.js")},
  {pattern: /^\/system$/, link: {href: "#/system", label: "System"}, load: () => import("./system.js")},
  {pattern: /^\/system\/administration$/, part: "#/system", load: () => import("./administration.js")},
];
