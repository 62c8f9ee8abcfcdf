(* Theorems 1 to 3: the transition, the posterior and the isotropic posterior, with DDPM and blurs as special cases.

   Everything is given some knowledge C: for the forward process, C knows x_0, and mu_s = M_1:s x_0 is then known. *)

From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq fintype bigop.
From mathcomp Require Import order ssralg zmodp ssrnum matrix mxalgebra.
From ssd Require Import matrices moments.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ---- The matrices of theorems 1 to 3 ---- *)

Section Matrices.
Variable R : realFieldType.

(* M maps the state at s (size n) to the state at t (size m), S and T are the marginal covariances. *)
Definition transition_cov m n (M : 'M[R]_(m, n)) (S : 'M[R]_n) (T : 'M[R]_m) : 'M[R]_m := T - M *m S *m M^T.
Definition gain m n (M : 'M[R]_(m, n)) (S : 'M[R]_n) (T : 'M[R]_m) : 'M[R]_(n, m) := S *m M^T *m invmx T.
Definition posterior_cov m n (M : 'M[R]_(m, n)) (S : 'M[R]_n) (T : 'M[R]_m) : 'M[R]_n := S - gain M S T *m M *m S.
(* The covariance in its other form, (5), with Q the covariance of the transition. *)
Definition posterior_cov_by_precision m n (M : 'M[R]_(m, n)) (S : 'M[R]_n) (Q : 'M[R]_m) : 'M[R]_n :=
  invmx (invmx S + M^T *m invmx Q *m M).

(* (4): a transition between isotropic marginals has a covariance iff no direction would need negative variance. *)
Theorem isotropic_transition m n (M : 'M[R]_(m, n)) (sigma_s sigma_t : R) :
  covariance (transition_cov M (sigma_s ^+ 2)%:M (sigma_t ^+ 2)%:M)
  <-> forall v, sigma_s ^+ 2 * sqnorm (M^T *m v) <= sigma_t ^+ 2 * sqnorm v.
Proof.
have variance v : quad (transition_cov M (sigma_s ^+ 2)%:M (sigma_t ^+ 2)%:M) v
    = sigma_t ^+ 2 * sqnorm v - sigma_s ^+ 2 * sqnorm (M^T *m v).
  by rewrite quadB quad_congr !quad_scalar.
split=> [[_ psd_noise] v|bound]; first by rewrite -subr_ge0 -variance.
split=> [|v]; last by rewrite variance subr_ge0.
by apply: symmetricB; [|apply: symmetric_congr]; apply: symmetric_scalar.
Qed.

(* (4) as it is computed: by the operator norm. *)
Theorem isotropic_transition_norm N m n (M : 'M[R]_(m, n)) (sigma_s sigma_t : R) : opnorm N M ->
  covariance (transition_cov M (sigma_s ^+ 2)%:M (sigma_t ^+ 2)%:M)
  <-> sigma_s ^+ 2 * N ^+ 2 <= sigma_t ^+ 2.
Proof. by move/opnorm_tr/(opnorm_scaled_bound sigma_s sigma_t) <-; apply: isotropic_transition. Qed.

(* s -> t -> u is s -> u: the covariances add up to that of the product. *)
Theorem chain_cov l m n (L : 'M[R]_(l, m)) (M : 'M[R]_(m, n)) S T U :
  L *m transition_cov M S T *m L^T + transition_cov L T U = transition_cov (L *m M) S U.
Proof.
rewrite /transition_cov trmx_mul mulmxBr mulmxBl !mulmxA.
by rewrite addrC addrA subrK.
Qed.

(* If both steps have a covariance, so does the direct one. *)
Corollary chain_covariance l m n (L : 'M[R]_(l, m)) (M : 'M[R]_(m, n)) S T U :
  covariance (transition_cov M S T) -> covariance (transition_cov L T U) ->
  covariance (transition_cov (L *m M) S U).
Proof. by move=> covM covL; rewrite -(chain_cov L M S T U); apply/covarianceD/covL/covariance_congr. Qed.

(* With P = M_1:s onto every state: no other gain A than M carries every mean M_1:s x_0 where M does. *)
Theorem transition_gain_unique p m n (A M : 'M[R]_(m, n)) (P : 'M[R]_(n, p)) P' :
  P *m P' = 1%:M -> (forall x : 'cV[R]_p, A *m (P *m x) = M *m (P *m x)) -> A = M.
Proof.
move=> PP' same; rewrite -[A]mulmx1 -[M]mulmx1 -PP' !mulmxA; congr (_ *m P').
apply/trmx_inj/row_matrixP => i; apply: trmx_inj.
by rewrite !rowE !trmx_mul !trmxK -!mulmxA same.
Qed.

(* (6) in a form that shows it to be a covariance, also where Q is singular. *)
Lemma posterior_cov_sum m n (M : 'M[R]_(m, n)) S T : T \in unitmx -> symmetric S -> symmetric T ->
  let J := 1%:M - gain M S T *m M in
  posterior_cov M S T = J *m S *m J^T + gain M S T *m transition_cov M S T *m (gain M S T)^T.
Proof.
move=> unitT symS symT /=; set K := gain M S T.
have KT : K *m T = S *m M^T by rewrite /K /gain mulmxKV.
have step : (1%:M - K *m M) *m S *m M^T = K *m transition_cov M S T.
  by rewrite /transition_cov mulmxBr KT !mulmxBl mul1mx !mulmxA.
rewrite linearB /= tr_scalar_mx trmx_mul mulmxBr mulmx1 mulmxA step subrK.
by rewrite /posterior_cov -/K mulmxBl mul1mx.
Qed.

Theorem posterior_covariance m n (M : 'M[R]_(m, n)) S T : T \in unitmx ->
  covariance S -> covariance T -> covariance (transition_cov M S T) -> covariance (posterior_cov M S T).
Proof.
move=> unitT covS covT covQ; rewrite (posterior_cov_sum M unitT covS.1 covT.1).
by apply: covarianceD; apply: covariance_congr.
Qed.

(* Where the transition has an invertible covariance, so has the state at t: (6) exists wherever (5) does. *)
Lemma marginal_unit m n (M : 'M[R]_(m, n)) S T :
  covariance S -> covariance (transition_cov M S T) -> transition_cov M S T \in unitmx -> T \in unitmx.
Proof.
move=> covS covQ unitQ; have -> : T = M *m S *m M^T + transition_cov M S T by rewrite addrC subrK.
exact: unitmxD (covariance_congr _ covS) covQ unitQ.
Qed.

(* Theorem 2, (5) = (6). The gain through Q is the gain through T. *)
Lemma gain_by_precision m n (M : 'M[R]_(m, n)) S T :
  T \in unitmx -> transition_cov M S T \in unitmx ->
  posterior_cov M S T *m M^T *m invmx (transition_cov M S T) = gain M S T.
Proof.
move=> unitT unitQ; set K := gain M S T; set Q := transition_cov M S T.
have KT : K *m T = S *m M^T by rewrite /K /gain mulmxKV.
have -> : posterior_cov M S T *m M^T = K *m Q.
  by rewrite /posterior_cov -/K /Q /transition_cov mulmxBr KT mulmxBl !mulmxA.
exact: mulmxK.
Qed.

Theorem posterior_cov_forms_agree m n (M : 'M[R]_(m, n)) S T :
  S \in unitmx -> T \in unitmx -> transition_cov M S T \in unitmx ->
  posterior_cov_by_precision M S (transition_cov M S T) = posterior_cov M S T.
Proof.
move=> unitS unitT unitQ; set Q := transition_cov M S T.
have inverse : posterior_cov M S T *m (invmx S + M^T *m invmx Q *m M) = 1%:M.
  rewrite mulmxDr !mulmxA gain_by_precision // /posterior_cov mulmxBl mulmxV //.
  by rewrite mulmxK // subrK.
have [_ unitL] := mulmx1_unit inverse.
by rewrite /posterior_cov_by_precision -[RHS](mulmxK unitL) inverse mul1mx.
Qed.

(* A noise-free transition leaves no variance along M; (5) does not exist there. *)
Lemma posterior_noise_free m n (M : 'M[R]_(m, n)) S T :
  T \in unitmx -> transition_cov M S T = 0 -> M *m posterior_cov M S T = 0.
Proof.
move=> unitT /eqP; rewrite subr_eq0 => /eqP eqT.
by rewrite /posterior_cov /gain mulmxBr !mulmxA -eqT mulmxV // mul1mx subrr.
Qed.

(* Theorem 3, (7). *)
Lemma isotropic_gain m n (M : 'M[R]_(m, n)) (a b : R) : gain M a%:M b%:M = (a / b) *: M^T.
Proof. by rewrite /gain invmx_scalar mul_scalar_mx -scalemxAl mul_mx_scalar scalerA. Qed.

Theorem isotropic_posterior_cov m n (M : 'M[R]_(m, n)) (a b : R) :
  posterior_cov M a%:M b%:M = a *: (1%:M - (a / b) *: (M^T *m M)).
Proof.
rewrite /posterior_cov isotropic_gain mul_mx_scalar -!scalemxAl scalerBr scalemx1.
by rewrite !scalerA.
Qed.

(* The joint covariance of (x_s, x_t) built forwards from q(x_s) q(x_t|x_s), and backwards from q(x_t) q(x_s|x_t). *)
Theorem joint_cov_forms_agree m n (M : 'M[R]_(m, n)) S T : T \in unitmx -> symmetric S -> symmetric T ->
  let forwards := block_mx 1%:M 0 M 1%:M in
  let backwards := block_mx 1%:M (gain M S T) 0 1%:M in
  let joint := block_mx S (S *m M^T) (M *m S) T in
  forwards *m block_mx S 0 0 (transition_cov M S T) *m forwards^T = joint
  /\ backwards *m block_mx (posterior_cov M S T) 0 0 T *m backwards^T = joint.
Proof.
move=> unitT symS symT /=; set K := gain M S T.
have KT : K *m T = S *m M^T by rewrite /K /gain mulmxKV.
have TK : T *m K^T = M *m S by rewrite -[T]symT -trmx_mul KT trmx_mul trmxK symS.
rewrite !tr_block_mx !trmx0 !tr_scalar_mx !mulmx_block.
rewrite !(mul0mx, mulmx0, mul1mx, mulmx1, add0r, addr0); split; first by rewrite addrC subrK.
by rewrite -(mulmxA K T) TK KT mulmxA subrK.
Qed.

End Matrices.
