/* Before anything is painted: the theme that was chosen here, if it is not the system's. The only script that is not a module. */
"use strict";
try {
  const chosen = localStorage.getItem("quantd.theme");
  if (chosen === "light" || chosen === "dark") {
    document.documentElement.dataset.theme = chosen;
  }
} catch {
  /* Storage is blocked: the system's theme. */
}
