// SPDX-License-Identifier: GPL-2.0
/*
 * Whether crash kernels may be loaded: the rules of kexec_load(), as far as they aren't
 * told by a function that is exported.
 */
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kstrtox.h>
#include <linux/mount.h>
#include <linux/security.h>

#include "shim.h"

#define DISABLED	"sys/kernel/kexec_load_disabled"
#define LIMIT		"sys/kernel/kexec_load_limit_panic"

/*
 * kexec_load_permitted() isn't exported, what it looks at is only in /proc/sys. That is
 * a mount of our own, as the one of a program may be anything.
 */
static struct vfsmount *proc;

int p2m_crash_find_rules(void)
{
	struct file_system_type *type = get_fs_type("proc");
	struct vfsmount *mount;

	/* Without it, nobody can have set anything. */
	if (!type)
		return 0;
	mount = kern_mount(type);
	/* It's built in, and not counted. */
	if (IS_ERR(mount))
		return PTR_ERR(mount);
	proc = mount;
	return 0;
}

void p2m_crash_forget_rules(void)
{
	if (proc)
		kern_unmount(proc);
	proc = NULL;
}

/* Returns an error, -ENOENT if the kernel has none of that name. */
static int read_rule(const char *name, int *value)
{
	struct file *file;
	char text[16] = "";
	loff_t pos = 0;
	ssize_t ret;

	if (!proc)
		return -ENOENT;
	file = file_open_root_mnt(proc, name, O_RDONLY, 0);
	if (IS_ERR(file))
		return PTR_ERR(file);
	ret = kernel_read(file, text, sizeof(text) - 1, &pos);
	fput(file);
	if (ret < 0)
		return ret;
	return kstrtoint(strim(text), 10, value);
}

static int write_rule(const char *name, int value)
{
	struct file *file = file_open_root_mnt(proc, name, O_WRONLY, 0);
	char text[16];
	loff_t pos = 0;
	ssize_t ret;

	if (IS_ERR(file))
		return PTR_ERR(file);
	ret = kernel_write(file, text, scnprintf(text, sizeof(text), "%d", value), &pos);
	fput(file);
	return ret < 0 ? ret : 0;
}

/* Returns the limit of loads, INT_MAX if there is none. 0 if there may be no more. */
static int nr_loads(void)
{
	int disabled = 0, limit = -1, ret;

	ret = read_rule(DISABLED, &disabled);
	/* A kernel without kexec has no rules. */
	if (ret == -ENOENT)
		return INT_MAX;
	if (!ret)
		ret = read_rule(LIMIT, &limit);
	if (ret == -ENOENT)
		ret = 0;
	/* What can't be read forbids it. */
	if (ret || disabled)
		return 0;
	return limit < 0 ? INT_MAX : limit;
}

bool p2m_crash_is_disabled(void)
{
	return !nr_loads();
}

/* Counts a load. The caller has a lock; kexec has another one, and may be counting too. */
int p2m_crash_permit_load(void)
{
	int limit, ret;

	/* No file is read here that a security module could judge. */
	ret = security_kernel_load_data(LOADING_KEXEC_IMAGE, false);
	if (ret)
		return ret;
	limit = nr_loads();
	if (!limit)
		return -EPERM;
	/* The limit only goes down: if it does meanwhile, that is refused. */
	if (limit < INT_MAX && write_rule(LIMIT, limit - 1))
		return -EPERM;
	return 0;
}
