# Completion of the command `distill_sbs` in Bash and zsh: commands, and the flags and macros of each,
# as `--helpfull` lists them; they are asked for once a shell. Of a flag's value, files.
#
#   source <(distill_sbs completion)
#
# shellcheck shell=bash disable=SC2207  # no word holds a blank, and zsh has no mapfile

if [[ -n ${ZSH_VERSION:-} ]]; then
  autoload -U +X compinit bashcompinit && compinit && bashcompinit
fi

_distill_sbs_commands=""
declare -gA _distill_sbs_flags=()

_distill_sbs() {
  local word="${COMP_WORDS[COMP_CWORD]}" command="${COMP_WORDS[1]:-}" program="${COMP_WORDS[0]}"
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    [[ -n $_distill_sbs_commands ]] ||
      _distill_sbs_commands="$("$program" --help 2>/dev/null | sed -nE 's/^  ([a-z]+)  .*/\1/p')"
    COMPREPLY=($(compgen -W "$_distill_sbs_commands" -- "$word"))
    return
  fi
  [[ $word == -* ]] || return 0
  [[ -n ${_distill_sbs_flags[$command]:-} ]] ||
    _distill_sbs_flags[$command]="$("$program" "$command" --helpfull 2>/dev/null |
      sed -nE -e 's/^  (--[a-z_]+):.*/\1=/p' -e 's/^  ([A-Z][A-Z0-9_]*): .*/--gin.\1=/p')"
  COMPREPLY=($(compgen -W "${_distill_sbs_flags[$command]}" -- "$word"))
  compopt -o nospace 2>/dev/null || true
}

if [[ -n ${ZSH_VERSION:-} ]]; then  # which has no compopt: no blank behind a command either
  complete -o nospace -o default -F _distill_sbs distill_sbs
else
  complete -o default -F _distill_sbs distill_sbs
fi
