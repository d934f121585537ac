/* A table of objects that the interface lists in pages: the newest first, more at the press of a button. */
import {get, query as queryOf} from "./api.js";
import {el, empty, setText, skeleton} from "./dom.js";
import {count} from "./format.js";

const PAGE = 50;

/* columns: [{label, class, cell(object)}], cell gives text or an element. nothing: what is shown where there are none. Returns
 * {element, reload()}. onPage(objects) is told what was read. */
export function pagedList({title, path, parameters = {}, columns, nothing, signal, note = null, onPage = () => {}}) {
  const body = el("tbody"), table = el("table", {class: "table listing", "aria-label": title},
    el("thead", {}, el("tr", {}, ...columns.map((column) => el("th", {scope: "col", class: column.class ?? null}, column.label)))), body);
  const place = el("div", {class: "scroller", tabindex: "0", role: "region", "aria-label": title}, skeleton(3));
  const range = el("span", {class: "muted", role: "status"}), more = el("button", {class: "button", type: "button", on: {click: () => read(false)}}, "Show more");
  const footer = el("div", {class: "footer", hidden: true}, more);
  let after = null, number = 0;

  async function read(anew) {
    more.disabled = true;
    try {
      const page = await get(path + queryOf({...parameters, limit: PAGE, after: anew ? null : after}), {signal});
      if (anew) {
        body.replaceChildren();
        number = 0;
      }
      after = page.last_id;
      number += page.data.length;
      onPage(page.data);
      body.append(...page.data.map((object) => el("tr", {}, ...columns.map((column) => {
        const content = column.cell(object);
        return el("td", {class: column.class ?? null, title: column.class?.includes("clip") && typeof content === "string" ? content : null, data: {label: column.label}}, content);
      }))));
      place.replaceChildren(number > 0 ? table : nothing());
      footer.hidden = !page.has_more;
      setText(range, number === 0 ? note ?? "" : [`${count(number)}${page.has_more ? ", and older ones" : ""}`, note].filter(Boolean).join(" · "));
    } catch (error) {
      if (error.name !== "AbortError" && number === 0) {
        place.replaceChildren(empty("This list could not be read", `${error.message}${error.hint ? `. ${error.hint}` : ""}`, el("button", {class: "button", type: "button", on: {click: () => read(true)}}, "Try again")));
      }
    }
    more.disabled = false;
  }

  read(true);
  return {
    element: el("section", {class: "panel", "aria-label": title}, el("header", {}, el("h2", {}, title), range), el("div", {class: "body flush"}, place), footer),
    reload: () => read(true),
  };
}
