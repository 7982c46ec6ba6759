// The second half of the action: prints what the job's larder did, adds it to the step's summary, and ends that larder, so that a
// cache step can store its directory. A failure here does not fail the job.
"use strict";

const { execFileSync } = require("node:child_process");
const fs = require("node:fs");

const state = (name) => process.env[`STATE_${name}`] || "";

function said(...words) {
  return execFileSync(state("program"), [...words, "--data", state("data")], { stdio: ["ignore", "pipe", "pipe"] }).toString().trimEnd();
}

async function ended(pid) {
  process.kill(pid, "SIGTERM");
  for (let tries = 0; tries < 600; tries += 1) {
    try {
      process.kill(pid, 0);
    } catch {
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

async function main() {
  if (!state("pid")) return;
  try {
    const report = `${said("stats")}\n${said("recent")}`;
    console.log(report);
    if (process.env.GITHUB_STEP_SUMMARY) {
      fs.appendFileSync(process.env.GITHUB_STEP_SUMMARY, `### larder\n\n\`\`\`text\n${report.replaceAll("```", "'''")}\n\`\`\`\n`);
    }
  } finally {
    await ended(Number(state("pid")));
  }
}

main().catch((error) => console.log(`::warning::larder: ${String(error.stderr || error.message).trim()}`));
