/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What C can't say.
 */
#include <linux/linkage.h>
#include <asm/asm-offsets.h>
#include <asm/nospec-branch.h>
#include <asm/segment.h>

/* struct pt_regs, what asm-offsets.h doesn't have; shim.c asserts it. */
#define pt_regs_ip	(16 * 8)
#define pt_regs_cs	(17 * 8)
#define pt_regs_ss	(20 * 8)

/* struct p2m_crash_registers */
#define REG_RBX		(0 * 8)
#define REG_RCX		(1 * 8)
#define REG_RDX		(2 * 8)
#define REG_RSI		(3 * 8)
#define REG_RDI		(4 * 8)
#define REG_RBP		(5 * 8)
#define REG_R8		(6 * 8)
#define REG_R9		(7 * 8)
#define REG_R10		(8 * 8)
#define REG_R11		(9 * 8)
#define REG_R12		(10 * 8)
#define REG_R13		(11 * 8)
#define REG_R14		(12 * 8)
#define REG_R15		(13 * 8)

.section .noinstr.text, "ax"

/*
 * void p2m_crash_capture(struct pt_regs *registers): the registers of the caller, as
 * they will be when this returns. Those that a function may change mean nothing.
 */
SYM_FUNC_START(p2m_crash_capture)
	mov	%r15, pt_regs_r15(%rdi)
	mov	%r14, pt_regs_r14(%rdi)
	mov	%r13, pt_regs_r13(%rdi)
	mov	%r12, pt_regs_r12(%rdi)
	mov	%rbp, pt_regs_bp(%rdi)
	mov	%rbx, pt_regs_bx(%rdi)
	mov	(%rsp), %rax
	mov	%rax, pt_regs_ip(%rdi)
	lea	8(%rsp), %rax
	mov	%rax, pt_regs_sp(%rdi)
	pushf
	pop	%rax
	mov	%rax, pt_regs_flags(%rdi)
	movq	$__KERNEL_CS, pt_regs_cs(%rdi)
	movq	$__KERNEL_DS, pt_regs_ss(%rdi)
	RET
SYM_FUNC_END(p2m_crash_capture)

/*
 * The instructions of AMD's SVM (AMD64 manual, volume 2, 15.5), and what they leave
 * to software: registers other than RAX and RSP, and what VMLOAD and VMSAVE are for.
 */

/* void p2m_crash_svm_begin(u64 host_vmcb): hold off all interrupts, save our state. */
SYM_FUNC_START(p2m_crash_svm_begin)
	clgi
	mov	%rdi, %rax
	vmsave	%rax
	RET
SYM_FUNC_END(p2m_crash_svm_begin)

/* void p2m_crash_svm_end(void): let interrupts come again. */
SYM_FUNC_START(p2m_crash_svm_end)
	stgi
	RET
SYM_FUNC_END(p2m_crash_svm_end)

/*
 * void p2m_crash_svm_run(u64 vmcb, struct p2m_crash_registers *registers, u64 host_vmcb)
 *
 * Runs a guest until it exits. Addresses of VMCBs are physical ones. Between its exit
 * and the last VMLOAD there is no GS base, so nothing but the stack is used.
 */
SYM_FUNC_START(p2m_crash_svm_run)
	push	%rbp
	push	%rbx
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	push	%rsi
	push	%rdx

	mov	%rdi, %rax
	vmload	%rax
	mov	REG_RBX(%rsi), %rbx
	mov	REG_RCX(%rsi), %rcx
	mov	REG_RDX(%rsi), %rdx
	mov	REG_RDI(%rsi), %rdi
	mov	REG_RBP(%rsi), %rbp
	mov	REG_R8(%rsi), %r8
	mov	REG_R9(%rsi), %r9
	mov	REG_R10(%rsi), %r10
	mov	REG_R11(%rsi), %r11
	mov	REG_R12(%rsi), %r12
	mov	REG_R13(%rsi), %r13
	mov	REG_R14(%rsi), %r14
	mov	REG_R15(%rsi), %r15
	mov	REG_RSI(%rsi), %rsi
	vmrun	%rax
	/* RAX and RSP are ours again. */
	vmsave	%rax

	mov	8(%rsp), %rax
	mov	%rbx, REG_RBX(%rax)
	mov	%rcx, REG_RCX(%rax)
	mov	%rdx, REG_RDX(%rax)
	mov	%rsi, REG_RSI(%rax)
	mov	%rdi, REG_RDI(%rax)
	mov	%rbp, REG_RBP(%rax)
	mov	%r8, REG_R8(%rax)
	mov	%r9, REG_R9(%rax)
	mov	%r10, REG_R10(%rax)
	mov	%r11, REG_R11(%rax)
	mov	%r12, REG_R12(%rax)
	mov	%r13, REG_R13(%rax)
	mov	%r14, REG_R14(%rax)
	mov	%r15, REG_R15(%rax)

	pop	%rax
	vmload	%rax
	pop	%rax
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbx
	pop	%rbp
	RET
SYM_FUNC_END(p2m_crash_svm_run)
