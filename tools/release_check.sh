#!/usr/bin/env bash
# All that a release must pass before it is uploaded, on a laptop and in the release workflow: `make release-check`.
# Builds the source distribution and the wheel into dist/, checks what they hold and say of themselves, and installs and
# runs each in a fresh environment. TAG, where it is set, must be v and the version.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

step() { printf '\n== %s\n' "$*"; }

step "build"
rm -rf dist
"$PYTHON" -m venv "$work/tools"
"$work/tools/bin/python" -m pip install --quiet --upgrade "pip>=25.1"
"$work/tools/bin/python" -m pip install --quiet "build>=1.2" "twine>=6"
"$work/tools/bin/python" -m build --outdir dist .

step "twine check"
"$work/tools/bin/python" -m twine check --strict dist/*

step "what they hold"
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' src/loadmaster/__init__.py)
wheel=dist/loadmaster-$version-py3-none-any.whl
sdist=dist/loadmaster-$version.tar.gz
"$PYTHON" -m zipfile --list "$wheel" | awk 'NR > 1 {print $1}' | sort > "$work/wheel"
tar -tzf "$sdist" | sed "s|^loadmaster-$version/||" | sort > "$work/sdist"
for file in loadmaster/py.typed "loadmaster-$version.dist-info/licenses/LICENSE"; do
    grep -qxF "$file" "$work/wheel" || { echo "the wheel lacks $file"; exit 1; }
done
if grep -v -e '^loadmaster/.*\.\(py\|typed\)$' -e "^loadmaster-$version.dist-info/" "$work/wheel"; then
    echo "the wheel holds what is no source of the package"; exit 1
fi
for file in LICENSE README.md pyproject.toml src/loadmaster/py.typed; do
    grep -qxF "$file" "$work/sdist" || { echo "the source distribution lacks $file"; exit 1; }
done
if grep -e '^\.venv' -e '^\.cache/' -e '__pycache__' -e '\.pyc$' -e '^\.[a-z]*_cache/' -e '^dist/' -e '\.safetensors$' "$work/sdist" | grep -v '^demo/glm/model-.*\.safetensors$'; then
    echo "the source distribution holds what was built or cached"; exit 1
fi
if command -v git > /dev/null && git rev-parse --git-dir > /dev/null 2>&1; then
    git ls-files | sort > "$work/tracked"
    if comm -13 "$work/tracked" "$work/sdist" | grep -vx -e PKG-INFO; then
        echo "the source distribution holds files that git does not track"; exit 1
    fi
fi
echo "$(wc -l < "$work/wheel") files in the wheel, $(wc -l < "$work/sdist") in the source distribution"

step "the tag"
if [[ -z ${TAG:-} ]]; then
    echo "none given; the version is $version"
elif [[ $TAG == "v$version" ]]; then
    echo "$TAG is the version's"
else
    echo "the tag is $TAG, and the version $version: tag v$version, or change src/loadmaster/__init__.py"; exit 1
fi

for file in "$wheel" "$sdist"; do
    step "install and run $file"
    rm -rf "$work/env" "$work/run"
    "$PYTHON" -m venv "$work/env"
    "$work/env/bin/python" -m pip install --quiet --disable-pip-version-check "$file"
    mkdir "$work/run"
    (
        cd "$work/run"
        unset PYTHONPATH
        said=$("$work/env/bin/loadmaster" --version)
        [[ $said == "loadmaster $version" ]] || { echo "it says that it is $said"; exit 1; }
        echo "$said"
        "$work/env/bin/loadmaster" synth glm-5.1-fp8 tiny --tiny
        "$work/env/bin/loadmaster" plan tiny -pp 2
    )
done

step "ready to upload"
ls -l dist
