// Runs before the first paint, so that a dark page never flashes white. The choice is "light", "dark" or, when none
// was made, what the system says.
"use strict";
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    let choice = null;
    try {
      choice = localStorage.getItem("qwen-server:theme");
    } catch {
      // storage is forbidden: follow the system
    }
    const dark = choice === "dark" || (choice !== "light" && system.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
  };
  apply();
  system.addEventListener("change", apply);
  addEventListener("themechoice", apply);
})();
