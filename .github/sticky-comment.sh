#!/usr/bin/env bash
# Write a file as the one comment of this kind on the pull request whose newest commit is $HEAD_SHA, in place of the earlier one.
#   GH_TOKEN=… GH_REPO=owner/name HEAD_SHA=… .github/sticky-comment.sh comment.md
set -euo pipefail

# What another run left may be a link to what only this one can read.
if [ -L "$1" ] || [ ! -f "$1" ]; then
    echo "$1 is not a file" >&2
    exit 1
fi

marker="<!-- effbench board -->"
number=$(gh pr list --state open --limit 1000 --json number,headRefOid \
    --jq 'map(select(.headRefOid == env.HEAD_SHA))[0].number // empty')
if [ -z "$number" ]; then
    echo "no open pull request ends in $HEAD_SHA: it has newer commits, or is closed"
    exit 0
fi

# Whoever made the text, the comment is ours: nobody is called by it, and GitHub takes 65,536 characters.
body=$(mktemp)
{
    printf '%s\n' "$marker"
    head --bytes=60000 "$1" | sed 's/@/(at)/g'
    if [ "$(stat --format=%s "$1")" -gt 60000 ]; then
        printf '\n\n… cut: the summary of the run has it all.\n'
    fi
} > "$body"

ours="select(.user.login == \"github-actions[bot]\" and (.body | startswith(\"$marker\")))"
earlier=$(gh api "repos/$GH_REPO/issues/$number/comments" --paginate --jq ".[] | $ours | .id" | head --lines=1)
if [ -n "$earlier" ]; then
    gh api --method PATCH "repos/$GH_REPO/issues/comments/$earlier" --field "body=@$body" --silent
else
    gh api --method POST "repos/$GH_REPO/issues/$number/comments" --field "body=@$body" --silent
fi
