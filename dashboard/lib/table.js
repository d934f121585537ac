/* A table of thousands of rows, of which only those that can be seen are elements. Rows have one height. Keyboard: arrows, Page Up and Down,
 * Home, End. Headings sort. */
import {el, framed, setText} from "./dom.js";

const MORE = 6; /* rows beyond what is seen, either way */
let tables = 0;

/* columns: [{key, label, class, text(row), title(row), order(row)}]; order gives what to sort by, null last. onSelect(row). Returns
 * {element, rows(list), select(row), selected()}. Rows are compared by identity(row). */
export function virtualTable({label, columns, identity, onSelect}) {
  const id = `table-${++tables}`;
  let rows = [], sorted = [], chosen = null, order = null, down = false, height = 34;
  const head = el("tr", {"aria-rowindex": "1"}, ...columns.map((column) => {
    const cell = el("th", {scope: "col", class: column.class ?? null}, column.order
      ? el("button", {type: "button", on: {click: () => sortBy(column)}}, column.label) : column.label);
    column.cell = cell;
    return cell;
  }));
  const above = el("td", {colspan: String(columns.length)}), below = el("td", {colspan: String(columns.length)});
  const top = el("tbody", {"aria-hidden": "true", class: "spacer"}, el("tr", {}, above));
  const bottom = el("tbody", {"aria-hidden": "true", class: "spacer"}, el("tr", {}, below));
  const body = el("tbody");
  const table = el("table", {class: "table virtual", role: "grid", tabindex: "0", "aria-label": label}, el("thead", {}, head), top, body, bottom);
  const scroller = el("div", {class: "scroller virtual-scroller"}, table);

  const draw = framed(() => {
    const first = Math.max(0, Math.floor(scroller.scrollTop / height) - MORE);
    const count = Math.ceil((scroller.clientHeight || 400) / height) + 2 * MORE;
    const part = sorted.slice(first, first + count);
    table.setAttribute("aria-rowcount", String(sorted.length + 1));
    while (body.children.length > part.length) {
      body.lastElementChild.remove();
    }
    while (body.children.length < part.length) {
      const line = el("tr", {}, ...columns.map((column) => el("td", {class: column.class ?? null, role: "gridcell"})));
      line.addEventListener("click", () => choose(line.row));
      body.append(line);
    }
    part.forEach((row, i) => {
      const line = body.children[i];
      line.row = row;
      line.id = `${id}-${first + i}`;
      line.setAttribute("aria-rowindex", String(first + i + 2));
      line.setAttribute("aria-selected", String(chosen !== null && identity(row) === chosen));
      columns.forEach((column, c) => {
        const cell = line.children[c];
        setText(cell, column.text(row));
        if (column.title) {
          cell.title = column.title(row) ?? "";
        }
      });
    });
    above.style.height = `${first * height}px`;
    below.style.height = `${Math.max(0, sorted.length - first - part.length) * height}px`;
    top.hidden = first === 0;
    bottom.hidden = first + part.length >= sorted.length;
    const at = index();
    if (at >= first && at < first + part.length) {
      table.setAttribute("aria-activedescendant", `${id}-${at}`);
    } else {
      table.removeAttribute("aria-activedescendant");
    }
    const measured = body.firstElementChild?.getBoundingClientRect().height;
    if (measured && Math.abs(measured - height) > 0.5) {
      height = measured;
      draw();
    }
  });

  function index() {
    return chosen === null ? -1 : sorted.findIndex((row) => identity(row) === chosen);
  }

  function arrange() {
    sorted = rows;
    if (order) {
      sorted = [...rows].sort((a, b) => {
        const x = order(a), y = order(b);
        if (x === null || y === null) {
          return x === y ? 0 : x === null ? 1 : -1;
        }
        return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
      });
    }
    draw();
  }

  function sortBy(column) {
    if (order === column.order && down) {
      down = false;
    } else if (order === column.order) {
      order = null;
    } else {
      order = column.order;
      down = true;
    }
    for (const one of columns) {
      if (order !== null && one.order === order) {
        one.cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      } else {
        one.cell.removeAttribute("aria-sort");
      }
    }
    arrange();
  }

  function reveal(at) {
    const first = at * height, last = first + height, seen = scroller.clientHeight - head.offsetHeight;
    if (first < scroller.scrollTop) {
      scroller.scrollTop = first;
    } else if (last > scroller.scrollTop + seen) {
      scroller.scrollTop = last - seen;
    }
  }

  function choose(row, tell = true) {
    chosen = row === null ? null : identity(row);
    const at = index();
    if (at >= 0) {
      reveal(at);
    }
    draw();
    if (tell) {
      onSelect(row);
    }
  }

  scroller.addEventListener("scroll", draw, {passive: true});
  new ResizeObserver(draw).observe(scroller);
  table.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(scroller.clientHeight / height) - 2), at = index(), end = sorted.length - 1;
    const to = {ArrowDown: at + 1, ArrowUp: at < 0 ? 0 : at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: end}[event.key];
    if (to !== undefined && end >= 0 && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      choose(sorted[Math.min(end, Math.max(0, to))]);
    }
  });

  return {
    element: scroller,
    rows(list) {
      rows = list;
      arrange();
    },
    select(row) {
      choose(row, false);
    },
  };
}
