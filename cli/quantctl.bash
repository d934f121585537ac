# Completion for quantctl in bash. Commands and options come from quantctl itself (--words).

_quantctl() {
    local current=${COMP_WORDS[COMP_CWORD]} commands command="" word words
    local -a given=()

    COMPREPLY=()
    commands=$(quantctl --words 2>/dev/null) || return
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        [[ $word == -* ]] || given+=("$word")
    done
    # The command that is there so far: two words if there is such a one, else one.
    if [[ ${#given[@]} -ge 2 ]] && grep -qxF "${given[0]} ${given[1]}" <<<"$commands"; then
        command="${given[0]} ${given[1]}"
    elif [[ ${#given[@]} -ge 1 ]]; then
        command=${given[0]}
    fi
    if [[ $current == -* ]]; then
        # shellcheck disable=SC2086 # a command of two words is two arguments
        words=$(quantctl $command --words 2>/dev/null | grep -e '^--')
    elif [[ -z $command ]]; then
        words=$(grep -v -e '^--' <<<"$commands" | cut -d ' ' -f 1 | sort -u)
    else
        words=$(sed -n "s/^$command //p" <<<"$commands")
        if [[ -z $words ]]; then
            compopt -o default 2>/dev/null # files
            return
        fi
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}

complete -F _quantctl quantctl
