#!/bin/sh
echo filled by $(hostname) >"$1"
