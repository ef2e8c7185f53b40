"use strict";
// Fills in the chosen parameter. Texts go into the page as text, never as HTML.
const select = document.getElementById("param");
if (select) {
  const { params } = JSON.parse(document.getElementById("data").textContent);
  const details = document.getElementById("param-details");

  const add = (parent, name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    parent.append(made);
    return made;
  };

  const show = () => {
    const param = params[Number(select.value)];
    details.replaceChildren();
    if (!param) return;
    add(details, "p", `${param.dtype} [${param.shape.join(", ")}], ${param.size}, on rank ${param.rank}`);
    add(details, "code", `= ${param.expression}`);
    if (param.alias) add(details, "p", `shares the memory of ${param.alias}: nothing is read for it`);
    for (const piece of param.pieces) {
      const shown = add(details, "div", undefined, "piece");
      add(shown, "p", `${piece.box} ${piece.operation}`);
      add(shown, "code", piece.expression);
      for (const line of piece.reads) add(shown, "code", line, "reads");
    }
  };

  select.addEventListener("change", show);
  show();
}
