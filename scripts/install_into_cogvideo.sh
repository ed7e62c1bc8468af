#!/usr/bin/env bash
# Make a CogVideoX checkout run with SSVAE:  bash scripts/install_into_cogvideo.sh PATH [--check|--revert|--copy]
#
# PATH is the checkout or its sat folder, at tag v1.0 or main. This patches the few lines that configuration cannot reach;
# with CogVideoX's own autoencoder the patched code does what it did before. Then it installs the package with pip into the
# environment of PYTHON (default: python), or with --copy into the checkout, as sgm.sat_ssvae.
#
# --check only reports whether the patches are applied, fit, or do not fit. --revert undoes everything in the checkout.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
usage="usage: bash scripts/install_into_cogvideo.sh PATH [--check|--revert|--copy]"

# Print applied, fits or differs. Finds the lines wherever they moved.
state() {
    if (cd "$sat" && git apply --unidiff-zero --check --reverse "$1" 2>/dev/null); then
        echo applied
    elif (cd "$sat" && git apply --unidiff-zero --check "$1" 2>/dev/null); then
        echo fits
    else
        echo differs
    fi
}

# Print a patch as instructions for doing it by hand.
by_hand() {
    awk '/^--- a\// { file = substr($0, 7); next }
        /^\+\+\+ / { next }
        /^@@/ { printf "  %s, near line %d:\n", file, substr($2, 2); next }
        /^-/ { printf "    replace  %s\n", substr($0, 2) }
        /^\+/ { printf "    by       %s\n", substr($0, 2) }' "$1" >&2
}

(($# >= 1 && $# <= 2)) || die "$usage"
checkout=$1 action=${2:---install}
[[ $action =~ ^--(install|check|revert|copy)$ ]] || die "$usage"
command -v git >/dev/null || die "needs git to apply patches; install it"
for sat in "$checkout/sat" "$checkout" ""; do [[ -f $sat/sample_video.py && -f $sat/diffusion_video.py ]] && break; done
[[ -n $sat ]] || die "$checkout holds no sat/sample_video.py: give the folder of a CogVideo checkout"
era=v1.0
if grep -q fake_cp_size "$sat/diffusion_video.py"; then era=main; fi

patches=("$root/patches/$era/"*.patch)
fitting=() applied=() differing=()
for patch in "${patches[@]}"; do
    case $(state "$patch") in
    applied) applied+=("$patch") ;;
    fits) fitting+=("$patch") ;;
    differs) differing+=("$patch") ;;
    esac
done
say "CogVideoX $era in $sat: ${#applied[@]} patches applied, ${#fitting[@]} fit, ${#differing[@]} do not fit"

if ((${#differing[@]})) && [[ $action != --revert ]]; then
    say "this version differs from those that the patches were made for; by hand that is:"
    for patch in "${differing[@]}"; do by_hand "$patch"; done
    die "nothing was changed; edit these lines, or check out tag v1.0 or the newest main, and run this again"
fi
case $action in
--check) exit 0 ;;
--revert)
    for patch in "${applied[@]+"${applied[@]}"}"; do (cd "$sat" && git apply --unidiff-zero --reverse "$patch"); done
    if [[ -f $sat/sgm/sat_ssvae/cogvideo/first_stage.py ]]; then rm -r "$sat/sgm/sat_ssvae"; fi
    if ((${#differing[@]})); then
        say "lines of these patches were edited since; put back by hand what is left of them:"
        for patch in "${differing[@]}"; do by_hand "$patch"; done
    fi
    say "reverted; a package installed with pip stays until: pip uninstall sat-ssvae"
    exit 0
    ;;
--copy)
    rm -rf "$sat/sgm/sat_ssvae"
    (cd "$root" && find sat_ssvae -type f ! -path '*/__pycache__/*') |
        (cd "$root" && tar -cf - -T -) | tar -xf - -C "$sat/sgm"
    say "copied to $sat/sgm/sat_ssvae; give $root/cogvideo_configs/copied.yaml as the last --base"
    ;;
--install)
    "${PYTHON:-python}" -m pip install --quiet --disable-pip-version-check -e "$root" ||
        die "pip could not install $root with ${PYTHON:-python}; nothing was changed in $sat"
    ;;
esac
for patch in "${fitting[@]+"${fitting[@]}"}"; do (cd "$sat" && git apply --unidiff-zero "$patch"); done
say "ready: every configuration in $root/cogvideo_configs begins with its commands"
