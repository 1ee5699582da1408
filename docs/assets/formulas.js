// Without a mathematical font, browsers set subscripts on the line. site.css then lowers them.
document.addEventListener("DOMContentLoaded", () => {
  const base = document.querySelector("msub > :first-child")
  if (!base) return
  const middle = (box) => (box.top + box.bottom) / 2
  const shift = middle(base.nextElementSibling.getBoundingClientRect()) - middle(base.getBoundingClientRect())
  if (shift < 3) document.documentElement.classList.add("without-math-font")
})
